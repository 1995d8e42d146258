"""A CUDA device that is pretended: values are computed on the CPU, rules are a GPU's.

    with pretended() as cuda:
        x = torch.randn(8, 3).to(cuda)
        x.device           # cuda:0
        x.numpy()          # TypeError, as on a GPU
        x + torch.ones(3)  # RuntimeError, as on a GPU

Tensors stay plain host tensors.  One is on the pretended device if its storage was put there: by a factory with
device="cuda", by .to, or as the result of an operation on such tensors.  Two modes keep the account: `Calls` sees what
Python asks (devices, .device, .numpy), `Operations` every ATen operation, those of the backward pass included.  What is
checked is torch's own rule: the operands of an operation share a device, except numbers (0-d tensors of the host),
indices of the host, and copies.  Tensors that torch's C++ makes for itself go with either device.

How often the host would wait for the device is counted in `waits`: reading a number, copying to the host, copying from
memory that is not pinned, and whatever needs a size that only the device knows (nonzero, a mask as an index).

Modes belong to a thread: `entered` enters them in another.
"""

import time
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch._dynamo  # the modes import it at their first call, which must not find torch.cuda patched
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten

COPIES = (aten.copy_.default, aten._foreach_copy_.default)  # which read one device and write another
INDEXED = {  # operations whose indices may lie on the host, and what else they take
    aten.index.Tensor: lambda args: args[:1],
    aten.index_put_.default: lambda args: (args[0], args[2]),
    aten.index_put.default: lambda args: (args[0], args[2]),
    aten._index_put_impl_.default: lambda args: (args[0], args[2]),
}
WAITING = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default)
TO_HOST = (torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__)


class Account:
    """Which storages are whose; a weak reference keeps a dead one's address from being used again."""

    def __init__(self):
        self.held: dict[int, tuple[StorageWeakRef, str]] = {}
        self.waits: list[str] = []  # what made the host wait
        self.pinned: dict[int, StorageWeakRef] = {}
        self.launches = 0  # operations that write on the device
        self.from_python = False  # a factory under way was called by Python, and not by torch itself

    def whose(self, tensor) -> str:
        return self.held.get(tensor.untyped_storage()._cdata, (None, "host"))[1]

    def is_owned(self, tensor) -> bool:
        return self.held.get(tensor.untyped_storage()._cdata, (None, "torch"))[1] != "torch"

    def pin(self, tensor) -> torch.Tensor:
        reference = StorageWeakRef(tensor.untyped_storage())
        self.pinned[reference.cdata] = reference
        return tensor

    def is_pinned(self, tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.pinned

    def device(self, tensor) -> torch.device:
        return CUDA if self.whose(tensor) == "cuda" else CPU

    def put(self, tensor, whose: str) -> torch.Tensor:
        reference = StorageWeakRef(tensor.untyped_storage())
        self.held[reference.cdata] = reference, whose
        return tensor


def tensors_of(*things) -> list[torch.Tensor]:
    return [x for x in tree_leaves(things) if isinstance(x, torch.Tensor)]


class Operations(TorchDispatchMode):
    """Every ATen operation: operands on one device, results there too."""

    def __init__(self, account: Account):
        super().__init__()
        self.account = account

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, account = kwargs or {}, self.account
        given = tensors_of(args, kwargs)
        owners = {account.whose(x) for x in given}
        if func in COPIES:
            return func(*args, **kwargs)
        if "cuda" in owners:
            self.check(func, args, kwargs)
            masks = [x for x in tensors_of(args[1:2]) if x.dtype == torch.bool] if func in INDEXED else []
            if func in WAITING or masks:
                account.waits.append(str(func))
            whose = "cuda"
        elif given:
            whose = "host" if "host" in owners else "torch"
        else:
            whose = "host" if account.from_python else "torch"
        before = {x.untyped_storage()._cdata for x in given if account.whose(x) != "torch"}
        out = func(*args, **kwargs)
        # `set_` gives a tensor a storage that may have an owner, as Triton's interpreter does with a kernel's arguments
        made = [x for x in tensors_of(out) if x.untyped_storage()._cdata not in before and not account.is_owned(x)]
        for x in made:
            account.put(x, whose)
        account.launches += whose == "cuda" and bool(made or func._schema.is_mutable)
        return out

    def check(self, func, args, kwargs) -> None:
        operands = tensors_of(INDEXED[func](args) if func in INDEXED else args, kwargs)
        host = [tuple(x.shape) for x in operands if x.ndim and self.account.whose(x) == "host"]
        if host:
            raise RuntimeError(f"{func}: expected all tensors on one device, found {host} on {CPU} beside {CUDA}")


class Calls(TorchFunctionMode):
    """Python's calls: devices asked for, and questions about a tensor's device."""

    def __init__(self, account: Account):
        super().__init__()
        self.account = account

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, account = kwargs or {}, self.account
        mine = bool(args) and isinstance(args[0], torch.Tensor) and account.whose(args[0]) == "cuda"
        if func == torch.Tensor.device.__get__:
            return account.device(args[0])
        if func == torch.Tensor.is_cuda.__get__:
            return mine
        if func == torch.Tensor.is_cpu.__get__:
            return not mine
        if func is torch.Tensor.get_device:
            return 0 if mine else -1
        if func in TO_HOST and mine:
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")
        if func is torch.Tensor.pin_memory:
            return account.pin(args[0])
        if func is torch.Tensor.is_pinned:
            return account.is_pinned(args[0])
        if func is torch.Tensor.tolist and mine:
            account.waits.append("tolist")
            return func(self.moved(args[0], CPU, args[0].dtype, counted=False))
        if func in (torch.Tensor.cpu, torch.Tensor.cuda):
            return self.moved(args[0], CPU if func is torch.Tensor.cpu else CUDA, args[0].dtype)
        if func is torch.Tensor.to:
            return self.to(*args, **kwargs)
        if func is torch.Tensor.backward:  # a mode is off while it is asked, and backward runs Python code
            with self:
                return torch.autograd.backward(args[0], kwargs.pop("gradient", None), **kwargs)
        return self.made(func, args, kwargs)

    def to(self, x, *args, **kwargs):
        """Tensor.to in all its forms."""
        copy, other = kwargs.pop("copy", False), args[0] if args else kwargs.get("other")
        if isinstance(other, torch.Tensor):
            return self.moved(x, self.account.device(other), other.dtype, copy)
        device, dtype, at_once, _ = torch._C._nn._parse_to(*args, **kwargs)
        return self.moved(x, device or self.account.device(x), dtype or x.dtype, copy, at_once=at_once)

    def moved(self, x, device, dtype, copy=False, counted=True, at_once=False):
        on_device = self.account.whose(x) == "cuda"
        if counted and device.type == "cpu" and on_device:
            self.account.waits.append("copy to the host")
        if device.type == "cuda" and not on_device and not (at_once and self.account.is_pinned(x)):
            self.account.waits.append("copy from memory that is not pinned")
        same = self.account.device(x).type == device.type
        if same and x.dtype == dtype and not copy:
            return x
        out = torch.Tensor.to(x, dtype=dtype, copy=True)
        return self.account.put(out, "cuda" if device.type == "cuda" else "host")

    def made(self, func, args, kwargs):
        """Whatever may ask for a device; factories that ask for none make tensors of the host."""
        asked, given = kwargs.get("device"), tensors_of(args, kwargs)
        on_cuda = asked is not None and torch.device(asked).type == "cuda"
        if on_cuda:
            generator, kwargs = kwargs.get("generator"), kwargs | {"device": "cpu"}
            if generator is not None and generator.device.type != "cuda":
                raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device}'")
        before, self.account.from_python = self.account.from_python, not given
        try:
            out = func(*args, **kwargs)
        finally:
            self.account.from_python = before
        if on_cuda and given and func in (torch.as_tensor, torch.asarray, torch.tensor):
            return self.moved(out, CUDA, out.dtype)
        return self.account.put(out, "cuda") if on_cuda else out


class Event:
    """A CUDA event of a device whose work is done when a call returns."""

    def __init__(self, enable_timing=False):
        self.at = None

    def record(self, stream=None):
        self.at = time.perf_counter()

    def query(self):
        return True

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


class HostStream:
    """What `sit_rl.ranks.cpu_batches.second_stream` is to a GPU: the modes in the side thread."""

    def __init__(self, account: Account):
        self.account = account

    def mark(self) -> None:
        return None

    def work(self, call: tuple):
        second, made, _ = call
        with entered(self.account):
            return second(made)


@contextmanager
def entered(account: Account):
    """The two modes in this thread."""
    with Operations(account), Calls(account):
        yield


@contextmanager
def pretended(account=None):
    """A pretended cuda:0 for as long as the block lasts; gives the device. `account` may be read afterwards."""
    account = account or Account()
    replacements = {name: mock.MagicMock() for name in ("synchronize", "device", "device_of", "current_stream")}
    with ExitStack() as stack:
        for name, replacement in replacements.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, replacement))
        stack.enter_context(mock.patch.object(torch.cuda, "Event", Event))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_name", lambda *_: "pretended"))
        stack.enter_context(mock.patch("sit_rl.ranks.cpu_batches.second_stream", lambda *_: HostStream(account)))
        # no kernel runs here: what the pretended device has are torch's own routes
        stack.enter_context(mock.patch("fastfid.backend.triton_obstacle", lambda *_: "the device is pretended"))
        stack.enter_context(entered(account))
        yield CUDA
