"""For Lightning: FD, FDr, precision and recall of a module's images after every fifth epoch."""

import torch

from fastfid.evaluation.lightning_callback import GeneratorMetrics


def images_of(module, count):
    """`count` images from 0 to 1, [count, c, h, w]."""
    return module(torch.randn(count, 2, device=module.device))


def metrics(real="real_images/", other_real="more_real_images/", network="inception", images=5_000, every_n_epochs=5):
    """The callback for `Trainer(callbacks=[...])`."""
    return GeneratorMetrics(
        images_of, real, network, other_real=other_real, images=images, every_n_epochs=every_n_epochs
    )
