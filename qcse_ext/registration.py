"""What the operators share beside their kernels: is there one, shapes for tracing, derivatives that are not offered."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad

__all__ = [
    "compose",
    "composed",
    "has_kernel",
    "once_differentiable",
    "refuse_forward_mode",
    "register_fake",
    "without_autograd",
]

# --- Kernel or definition ---------------------------------------------------------------------------------------------


def has_kernel(name: str, x: Tensor) -> bool:
    """Whether torch's dispatcher has a kernel of ``qcse::name`` for the device of x, ``[...]``.

    This is what makes a fused operator's function take the kernel; where there is none, or where the kernel does not
    take the arguments, the function computes the operator's definition, plain torch that autograd differentiates. A
    kernel that is registered for another device (``STABLE_TORCH_LIBRARY_IMPL``, ``torch.library.impl``), with its
    backward where there is one, is therefore in use without another change.

    It looks at no tensor's data. To have the definitions on a CPU as well, as the tests do, replace this function by
    one that returns False.
    """
    return _is_registered(name, x.device.type)


# What the dispatcher was found to have: to ask it at each call would cost a small network a fifth of its time.
_registered: set[tuple[str, str]] = set()


def _is_registered(name: str, device: str) -> bool:
    if (name, device) in _registered:
        return True
    # Not composite kernels, by which the dispatcher would choose by itself: torch.compile takes those apart even where
    # there is a kernel for the device, and none is chosen by a dtype, a shape or the number of layers.
    key = getattr(torch._C.DispatchKey, torch._C._dispatch_key_for_device(device))
    found = torch._C._dispatch_has_kernel_for_dispatch_key(f"qcse::{name}", key)
    if found:
        _registered.add((name, device))
    return found


# A constant for torch.compile. torch.compiler.assume_constant_result does this too, but imports the whole compiler.
_is_registered._dynamo_marked_constant = True  # type: ignore[attr-defined]


_library = torch.library.Library("qcse", "IMPL")


# What `compose` has registered, by the operator's name.
composed: dict[str, Callable[..., Any]] = {}


def compose(name: str, key: str, part: str, function: Callable[..., Any]) -> None:
    """Have ``qcse::name`` computed by a function in Python of other operators, on the devices of a dispatch key
    ("CUDA"), if ``qcse::part``, one of them, has a kernel there."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"qcse::{part}", key):
        _library.impl(name, function, key)
        composed[name] = function


# --- Derivatives that are not offered ---------------------------------------------------------------------------------


def _tensors(arguments: Any) -> Iterator[Tensor]:
    for x in arguments:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from _tensors(x)


def _has_tangent(x: Tensor) -> bool:
    """At any level: a transform inside another does not see what the outer one's tensors carry."""
    functorch: Any = torch._C._functorch
    top = functorch.peek_interpreter_stack()
    if (top is None or top.key() != functorch.TransformType.Vmap) and forward_ad.unpack_dual(x).tangent is not None:
        return True
    if top is None:
        return False
    inner = functorch.get_unwrapped(x) if functorch.maybe_get_level(x) == top.level() else x
    with temporarily_pop_interpreter_stack():
        return _has_tangent(inner)


def refuse_forward_mode(name: str, *arguments: Any) -> None:
    """Raise where a tensor, or one in a list, carries a forward-mode tangent: no operator would pass it on.

    Raises:
        RuntimeError: it does (``torch.func.jvp``, ``jacfwd``, ``torch.autograd.forward_ad``).
    """
    if forward_ad._current_level < 0:
        return
    if any(_has_tangent(x) for x in _tensors(arguments)):
        raise RuntimeError(
            f"qcse_ext.{name}: an input carries a forward-mode tangent, and forward-mode derivatives (jvp, jacfwd) are "
            "not offered; use reverse mode where the function has a gradient, or detach() the input to have none"
        )


class _Once(torch.autograd.Function):
    """Passes the first tensors, which are gradients, through; they can't be differentiated for any of the tensors."""

    @staticmethod
    def forward(ctx: Any, name: str, grads: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(grad.view_as(grad) for grad in tensors[:grads])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"qcse_ext.{ctx.name}: its gradient was differentiated a second time (create_graph=True), and second "
            "derivatives are not offered; detach() the gradient, or use torch's own layers there"
        )


def once_differentiable(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For the ``backward`` of an autograd function: what it returns raises where it is differentiated again.

    torch's decorator of this name treats the gradient as a constant where the incoming one is one, as in the penalty
    ``grad(y.sum(), x, create_graph=True)``: a term would be missing in silence.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapper(ctx: Any, *grads: Any) -> Any:
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                return results
            made = [r.requires_grad_() for r in results if r is not None]
            guarded = iter(_Once.apply(name, len(made), *made, *_tensors(grads), *_tensors(ctx.saved_tensors)))
            return tuple(None if r is None else next(guarded) for r in results)

        return wrapper

    return decorate


# --- Tracing: shapes and dtypes without data --------------------------------------------------------------------------


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``torch.library.register_fake`` of an operator of ours, with a check that all tensors are on one device.

    Where one tensor is on 'meta' torch calls this rule, whatever the others are on, and would take the uninitialised
    memory that it makes for a result.
    """
    names = [argument.name for argument in getattr(torch.ops.qcse, name).default._schema.arguments]

    def decorate(shapes: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(shapes)
        def fake(*args: Any, **kwargs: Any) -> Any:
            first: tuple[str, torch.device] | None = None
            for argument, value in [*zip(names, args), *kwargs.items()]:
                for x in _tensors([value]):
                    first = first or (argument, x.device)
                    if x.device != first[1]:
                        raise RuntimeError(
                            f"qcse::{name}: {argument} is on {x.device}, but {first[0]} on {first[1]}; expected all "
                            "tensors on one device. Move them with .to(device)"
                        )
            return shapes(*args, **kwargs)

        torch.library.register_fake(f"qcse::{name}", fake)
        return shapes

    return decorate


# --- No gradient ------------------------------------------------------------------------------------------------------


def without_autograd(*names: str) -> None:
    """Tell autograd to look away from these operators: outputs do not require grad, whatever the inputs do.

    (A kernel without any registration would return requires_grad=True and a gradient of None.)
    """
    for name in names:
        _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
