"""Arrays of other libraries, which lend their memory by DLPack."""


class Foreign:
    """A tensor that offers nothing but DLPack."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


class OnDevice(Foreign):
    """One on a device: NumPy's protocol would copy it, and raises, as CuPy's does."""

    __cuda_array_interface__ = None

    def __array__(self, *_):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")
