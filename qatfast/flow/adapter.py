"""What differs between Keras 2 and Keras 3, as far as the flow asks: the smallest interface that both need.

Rules about models, their checks and their messages are written once, on this interface. `keras2.py` and `keras3.py`
implement it; `select.py` finds the one for a model or a file.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from qatfast.config import QATConfig
from qatfast.quantizers.base import quantizer_classes

__all__ = ["Call", "KerasAdapter"]


class Call(NamedTuple):
    """One call of an operation in a model's graph: what it was called with, and what it returned.

    An operation is a layer, or in Keras 3 also what a function of `keras.ops` leaves in a graph. `arguments` is
    (args, kwargs); these and `outputs` may hold tensors at any depth.
    """

    operation: Any
    arguments: tuple[tuple, dict]
    outputs: Any


class KerasAdapter(ABC):
    """A Keras, as the flow uses it.

    Attributes:
        name: 'Keras 2' or 'Keras 3'.
        api: The module whose `Model`, `layers`, `Sequential`, `activations` and `initializers` are meant.
        package: The name of the package that `api` is of.
        wrapper: The class of layers that quantize weights of another. It has `layer`, `weights_quantizers`.
        any_wrapper: What all such layers are of, others' included.
        holder: The class of layers that quantize an activation. It has `activation_holder_quantizer`.
        depthwise_kernel: The attribute of a DepthwiseConv2D layer that is its kernel.
        file_suffixes: What the names of files of models end in.
        locks_models: Whether a subclassed model that was called takes no other layers.
        saves_folders: Whether any other name makes a folder, which loads again.
    """

    name: str
    api: Any
    package: str
    wrapper: type
    any_wrapper: type
    holder: type
    depthwise_kernel: str
    file_suffixes = (".keras", ".h5", ".hdf5")
    locks_models: bool
    saves_folders: bool

    @property
    def layers(self):
        """The module of layers."""
        return self.api.layers

    def kinds(self, names: str) -> tuple[type, ...]:
        """The layer classes of these names, separated by spaces, as far as this Keras has them."""
        return tuple(
            getattr(module, name) for module in self.layer_modules for name in names.split() if hasattr(module, name)
        )

    @property
    def layer_modules(self) -> tuple:
        """The modules that layers are in."""
        return (self.layers,)

    def is_linear(self, activation) -> bool:
        """Whether a layer's `activation` is the identity."""
        return activation is self.api.activations.linear

    # Graphs.

    @abstractmethod
    def is_graph_model(self, model) -> bool:
        """Whether a model is Functional, or a Sequential that is built."""

    def functional(self, model):
        """The Functional model that is a model's graph: itself, or what a Sequential keeps."""
        return model

    @abstractmethod
    def calls(self, model) -> Iterator[Call]:
        """Yields the calls in a model's graph, each after those whose outputs it reads; inputs are no calls.

        Raises:
            ValueError: Something hangs on the graph that a new model would not have.
        """

    @abstractmethod
    def producer(self, tensor):
        """The operation that returned a symbolic tensor."""

    @abstractmethod
    def operations(self, model) -> list:
        """The operations of a model, nested models as one each."""

    @abstractmethod
    def function_name(self, operation) -> str | None:
        """The function that an operation is a call of, as `operations` lists them; None for a layer of its own."""

    @abstractmethod
    def described_function(self, name: str) -> str:
        """A function's name as users write it."""

    @abstractmethod
    def input_names(self, model) -> list[str]:
        """The names of a model's inputs, in their order."""

    @abstractmethod
    def clone(self, operation, name: str, config: dict | None = None):
        """Returns a new operation of another name, without the weights; of another `config` if that is given."""

    @abstractmethod
    def copy_weights(self, source, target) -> None:
        """Copies weights between operations of the same kind; either may be wrapped. Quantizers' are not copied."""

    @abstractmethod
    def global_policy(self):
        """The global policy, which a Functional model takes for its own."""

    @abstractmethod
    def set_global_policy(self, policy) -> None:
        """Sets the global policy."""

    @contextlib.contextmanager
    def policy_scope(self, policy) -> Iterator[None]:
        """Has a policy be the global one for a while."""
        previous = self.global_policy()
        self.set_global_policy(policy)
        try:
            yield
        finally:
            self.set_global_policy(previous)

    # Quantization.

    def is_quantized(self, operation) -> bool:
        """Whether an operation is a wrapper or a holder, of qatfast or of others, or what `finalized` made of one."""
        return isinstance(operation, (self.any_wrapper, self.holder))

    def quantizers(self, operation) -> list:
        """The quantizers of a wrapper or a holder; none of other operations."""
        if isinstance(operation, self.any_wrapper):
            return list(operation.weights_quantizers.values())
        return [operation.activation_holder_quantizer] if isinstance(operation, self.holder) else []

    @abstractmethod
    def quantized_weights(self, operation) -> list[tuple[Any, Any]]:
        """(variable, quantizer) of the weights that a wrapper quantizes; none of other operations."""

    def check_is_float(self, operation) -> None:
        """Raises a ValueError for a layer that computes with other numbers than its weights."""
        return

    def jit(self, config: QATConfig) -> dict:
        """The further arguments of wrappers and holders that say whether XLA may compile what trains with them."""
        return {}

    @abstractmethod
    def finalized(self, operation, name: str):
        """Returns a call-able of the same name that computes as an operation does, for the model to deploy.

        It is in float32. A kernel gets its numbers by `finish`.
        """

    @abstractmethod
    def finish(self, operation, finalized) -> None:
        """Gives the weights of a wrapper to what `finalized` made of it, as training quantizes them."""

    # Files.

    @abstractmethod
    def load(self, path: str, objects: dict, compile: bool, safe_mode: bool):
        """Loads a model; what Keras raises comes through."""

    def check_format(self, model, suffix: str) -> None:
        """Raises a ValueError for a model that would not load again from a file whose name ends so."""
        return

    def save(self, model, path: str, options: dict) -> None:
        """Saves a model, which stays as it is; what Keras raises comes through."""
        model.save(path, **options)

    @abstractmethod
    def scales_loss(self, optimizer) -> bool:
        """Whether an optimizer scales the loss, as training in float16 needs it."""

    def custom_objects(self) -> dict[str, type]:
        """Returns the trainable quantizers and their wrapper by all their names, as Keras' `custom_objects`.

        Of several classes of one name it is the newest.
        """
        classes = [*quantizer_classes(), self.wrapper]
        return {name: cls for cls in classes for name in (cls.__name__, self.registered_name(cls))}

    @abstractmethod
    def registered(self, name: str, objects: dict):
        """The class or function that is registered with Keras, or in `objects`, under a name; else None."""

    @abstractmethod
    def registered_name(self, cls: type) -> str:
        """The name that a class is registered under; its own, if it is not."""

    @abstractmethod
    def registered_objects(self) -> dict:
        """All that is registered with Keras, by name."""

    @abstractmethod
    def public_symbol(self, module: str, name: str):
        """What Keras has under a public name, of a module of Keras; None if nothing."""

    @abstractmethod
    def builtin_function(self, name: str):
        """The activation, loss, metric or the like of a name; None if there is none."""

    def present_name(self, module: str) -> str:
        """The name under which Keras looks for a module that a file names."""
        return module

    @abstractmethod
    def is_operation(self, function) -> bool:
        """Whether a function is one on tensors, and does nothing else."""

    def stored_functions(self, config: dict) -> Iterator[str]:
        """Yields, in words, what a layer of this config would call that is no operation on tensors."""
        yield from ()
