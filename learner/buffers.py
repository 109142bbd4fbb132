"""Buffers that no checkpoint holds, such as the frequencies of rotary positions: what their modules compute."""

from __future__ import annotations

from torch import nn

from mrpo.errors import ConfigError


def compute_buffers_again(model: nn.Module) -> None:
    """Give every floating-point buffer that is not in a checkpoint its full precision back; in place.

    While ZeRO-3 partitions a model that is being built, DeepSpeed casts every tensor made meanwhile to the training
    dtype, intermediate results too. In bfloat16 a rotary frequency is off by up to 2⁻⁹ of itself, and the angle of
    token 1,500 by radians.

    Raises:
        ConfigError: a buffer whose module cannot be made from its configuration alone.
    """
    stored = set(model.state_dict())
    for path, module in model.named_modules():
        names = [
            name
            for name, buffer in module.named_buffers(prefix=path, recurse=False)
            if buffer.is_floating_point() and name not in stored
        ]
        if not names:
            continue
        if not hasattr(module, "config"):
            raise ConfigError(
                f"{names[0]} is in no checkpoint, and its {type(module).__name__} has no configuration to compute it "
                "from; train this model with learner.zero_stage=2"
            )
        fresh = dict(type(module)(module.config).named_buffers(prefix=path))
        for name in names:
            own = name.rpartition(".")[2]
            module.register_buffer(own, fresh[name].to(module.get_buffer(own).device), persistent=False)
