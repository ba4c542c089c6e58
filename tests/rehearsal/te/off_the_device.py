"""Where torch itself would still reach for the device under FakeTensorMode, without the observer.

With the preloaded runtime `torch.cuda.is_available()` is true, and torch takes a device that
answers for one that computes.
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def keep_off_the_device() -> None:
    """For the rest of this process.

    * `torch.tensor(1.0, device="cuda")` makes its tensor on the device and then a fake one of it.
      Where a fake mode avoids the device, it does so for the thread that entered it alone: so
      backwards run on the thread that asks for them, not on autograd's own for the device (which
      moreover may not outlive the interpreter).
    """
    FakeTensorMode.avoid_device_init = property(lambda mode: True)
    run_backward = torch.autograd.graph._engine_run_backward

    def on_this_thread(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.set_multithreading_enabled(False):
            return run_backward(*args, **kwargs)

    torch.autograd.graph._engine_run_backward = on_this_thread
    torch.autograd._engine_run_backward = on_this_thread
