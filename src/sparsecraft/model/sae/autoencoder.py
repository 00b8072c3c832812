"""The one autoencoder: a linear encoder, an activation that makes the code sparse, a dictionary.

With x (rows, d_in): u = (n(x) - b_dec) W_enc + b_enc; z = activation(u); output = z W_dec + b_dec,
with the row's normalisation n undone. Everything that distinguishes the published variants is in
the activation (`sparsecraft.methods.codes`) and in the options named here.

W_enc has the shape (d_in, d_sae) that the field's files have, and is stored by column, so that the
weights of a latent lie side by side: kernels for sparse codes read and write whole latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparsecraft.core.code import Code
from sparsecraft.core.errors import UnknownName
from sparsecraft.core.kinds import Activation, Elementwise, Own, Selecting, Side
from sparsecraft.kernels.codes import (
    decode,
    encode_rows,
    pre_activations,
    selected_pre_activations,
)
from sparsecraft.kernels.codes.encoder import Precision
from sparsecraft.model.sae.checks import (
    check_options,
    check_prefixes,
    check_rows,
    check_sizes,
    checked_gradient,
)
from sparsecraft.model.sae.direct import ranks_rows
from sparsecraft.model.sae.estimator import Estimator
from sparsecraft.model.sae.first_weights import first_weights
from sparsecraft.model.sae.report import SAEReport
from sparsecraft.model.sae.row_scaling import ROW_NORMS, RowNorm, RowScaling


class SparseAutoencoder(Estimator, nn.Module):
    """Writes an activation as a sparse sum of learned directions.

    Args:
        d_in: Width of what is encoded.
        d_sae: Latents of the dictionary.
        activation: How pre-activations become a code, from `sparsecraft.methods.codes`.
        d_out: Width of what is reconstructed; d_in if left out.
        transcoder: Whether that is another tensor than is encoded, such as the output of an MLP
            whose input is; None: yes where the widths differ, or with `skip`. It begins with an
            encoder of its own and a decoder of zeros, and is trained on a store with targets.
        skip: Whether a linear map of the input is added (W_skip).
        tied: Whether the encoder reads along the decoder's directions, each latent with a scale of
            its own (GBA).
        row_norm: What is undone for each row: "unit" divides by its norm, "layer" subtracts its
            mean and divides by its standard deviation.
        prefixes: Latents of nested dictionaries (Matryoshka), ascending, the last d_sae.
        unroll: Proximal gradient steps of the encoder, for codes of rows alone; usually 1.
        subtract_bias: Whether the encoder reads x - b_dec; None: yes, but not in a transcoder,
            where b_dec is a centre of the outputs.
        seed: Of the first weights.

    Raises:
        InvalidValue: If a size or an option is not allowed, or does not suit the activation.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        activation: Activation,
        *,
        d_out: int | None = None,
        transcoder: bool | None = None,
        skip: bool = False,
        tied: bool = False,
        row_norm: RowNorm = "none",
        prefixes: tuple[int, ...] = (),
        unroll: int = 1,
        subtract_bias: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        d_out = d_in if d_out is None else d_out
        check_sizes(d_in=d_in, d_sae=d_sae, d_out=d_out, unroll=unroll)
        if row_norm not in ROW_NORMS:
            raise UnknownName("row_norm", str(row_norm), ROW_NORMS)
        activation.check(d_in, d_sae)
        self.d_in, self.d_sae, self.d_out = d_in, d_sae, d_out
        self.activation, self.row_norm, self.unroll = activation, row_norm, unroll
        self.tied = tied
        self.transcoder = skip or d_in != d_out if transcoder is None else transcoder
        self.subtract_bias = not self.transcoder if subtract_bias is None else subtract_bias
        check_options(self)
        self.prefixes = check_prefixes(prefixes, d_sae)
        self.info: dict[str, Any] = {}
        """Where the activations came from: model, hook, context, tokens; kept in the file."""
        self.report: SAEReport | None = None
        """How the training went, after `fit`."""
        self.trained = False
        """Whether the weights were trained or loaded, so that they read raw activations."""
        self._make_weights(skip, seed)
        self._make_own(seed)
        self.register_load_state_dict_post_hook(_mark_trained)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the reconstruction (..., d_out) of x (..., d_in)."""
        rows = self.check_input(x).reshape(-1, self.d_in)
        inner, undo = self.normalise_rows(rows)
        out = self.reconstruct(self.code_of(inner), inner)
        return undo(out).reshape(*x.shape[:-1], self.d_out)

    def encode(self, x: Tensor, *, gradient: Tensor | None = None) -> Tensor:
        """Returns the code (..., d_sae), dense.

        Args:
            x: (..., d_in).
            gradient: (..., d_out), of the model's loss with respect to what is reconstructed (x, or
                a transcoder's target), for an activation that selects by it.

        Raises:
            InvalidValue: If rows or gradient cannot be encoded, or a gradient would be ignored.
            NonFinite: If they hold NaN or infinity.
        """
        code = self.sparse_encode(x, gradient=gradient)
        return code.dense().reshape(*x.shape[:-1], self.d_sae)

    def sparse_encode(self, x: Tensor, *, gradient: Tensor | None = None) -> Code:
        """Returns the code of all rows of x (..., d_in), holding what is not zero."""
        rows = self.check_input(x).reshape(-1, self.d_in)
        scaling = RowScaling.of(rows, self.row_norm)
        if gradient is not None:
            gradient = scaling.gradient(checked_gradient(self, x, gradient))
        z = self.code_of(scaling.apply(rows), gradient=gradient)
        return z if isinstance(z, Code) else Code.of(z)

    def decode(self, z: Tensor | Code) -> Tensor:
        """Returns z W_dec + b_dec, (..., d_out) for a dense code, (rows, d_out) for a sparse one.

        Where rows are normalised (`row_norm`), this is in the normalised units.
        """
        if isinstance(z, Code):
            return decode(z.starts, z.columns, z.values, self.decoder_rows(), self.b_dec)
        return z @ self.decoder_rows() + self.b_dec

    def pre_activations(self, inner: Tensor, precision: Precision = "float32") -> Tensor:
        """Returns u (rows, d_sae) of normalised rows.

        Args:
            inner: (rows, d_in), normalised.
            precision: "bfloat16" rounds the product and its factors; the rest is float32.
        """
        x = self.centred(inner)
        return pre_activations(x, self.encoder(), self.b_enc, precision)

    def code_of(
        self,
        inner: Tensor,
        *,
        gradient: Tensor | None = None,
        u: Tensor | None = None,
        precision: Precision = "float32",
    ) -> Tensor | Code:
        """Returns the code of normalised rows: sparse from a selection, else dense.

        Args:
            inner: (rows, d_in), normalised.
            gradient: (rows, d_out), or None.
            u: The pre-activations, if they are there already; with their graph where the code
                unrolls several steps.
            precision: Of the product from which u comes, or a selection is made; values that a
                selection keeps are exact either way, unless several steps are unrolled.
        """
        if isinstance(self.activation, Elementwise):
            u = self.pre_activations(inner, precision) if u is None else u
            return self.activation.iterate(
                u, self.own, self.encoder(), self.decoder_rows(), self.unroll
            )
        if u is None and self.unroll == 1 and ranks_rows(self.activation):
            return self._ranked(inner, precision)
        return self._selected(inner, gradient, u, precision)

    def reconstruct(self, z: Tensor | Code, inner: Tensor) -> Tensor:
        """Returns (rows, d_out) in normalised units: the decoded code, and the skip's share."""
        out = self.decode(z)
        return out if self.W_skip is None else out + inner @ self.W_skip

    @property
    def own(self) -> Own:
        """What the activation trains and remembers."""
        return Own(
            self.b_enc,
            {name: cast(Tensor, getattr(self, f"own_{name}")) for name in self._parameter_names},
            {name: cast(Tensor, getattr(self, f"own_{name}")) for name in self._state_names},
        )

    def encoder(self) -> Tensor:
        """Returns what the encoder multiplies with, (d_in, d_sae); tied: the directions."""
        return self.W_dec.T if self.tied else self.W_enc

    def decoder_rows(self) -> Tensor:
        """Returns what the code is multiplied with, (d_sae, d_out); tied: scaled directions."""
        return self.W_dec * self.scale[:, None] if self.scale is not None else self.W_dec

    def centred(self, inner: Tensor) -> Tensor:
        """Returns the normalised rows as the encoder's matrix reads them."""
        return inner - self.b_dec if self.subtract_bias else inner

    def check_input(self, x: Tensor) -> Tensor:
        """Returns x on the device and in the type of the weights, or raises.

        Raises:
            InvalidValue: For another width, an integer type or no rows.
            NonFinite: For NaN or infinite values.
        """
        check_rows(x, self.d_in)
        return x.to(self.W_dec)

    def normalise_rows(self, rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Returns the rows normalised, and the function that undoes it on a reconstruction."""
        scaling = RowScaling.of(rows, self.row_norm)
        return scaling.apply(rows), scaling.undo

    def _ranked(self, inner: Tensor, precision: Precision) -> Code:
        """Returns the code of the largest of each row; u is never formed whole."""
        penalty = cast(Selecting, self.activation).penalty()
        weight, bias, centre = self.encoder(), self.b_enc, self.b_dec
        starts, columns, found = encode_rows(
            self.centred(inner).detach(),
            weight,
            bias,
            penalty.k,
            absolute=penalty.signed,
            precision=precision,
        )
        values = selected_pre_activations(
            inner,
            weight,
            bias,
            starts,
            columns,
            found=found,
            centre=centre if self.subtract_bias else None,
        )
        return Code(starts, columns, values, self.d_sae)

    def _selected(
        self, inner: Tensor, gradient: Tensor | None, u: Tensor | None, precision: Precision
    ) -> Code:
        """Returns the code that a selection makes; gradients pass through what is selected."""
        activation = cast(Selecting, self.activation)
        side = Side(self.decoder_rows().detach(), gradient)
        if u is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.unroll > 1):
                u = self.pre_activations(inner, precision)
        with torch.no_grad():
            code = activation.select(u.detach(), self.own, side, training=self.training)
        values = selected_pre_activations(
            self.centred(inner),
            self.encoder(),
            self.b_enc,
            code.starts,
            code.columns,
            found=code.values if precision == "float32" else None,
        )
        code = code.with_values(values)
        for _ in range(self.unroll - 1):
            v = code.dense() + u - (self.decode(code) - self.b_dec) @ self.encoder()
            with torch.no_grad():
                chosen = activation.select(v, self.own, side, training=self.training)
            code = chosen.with_values(v[chosen.rows(), chosen.columns])
        return code

    def _make_weights(self, skip: bool, seed: int) -> None:
        directions, decoder = first_weights(
            self.d_in, self.d_sae, self.d_out, transcoder=self.transcoder, seed=seed
        )
        self.W_dec = nn.Parameter(decoder)
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.b_enc = nn.Parameter(
            torch.zeros(self.d_sae), requires_grad=not self.activation.moves_bias
        )
        if not self.tied:
            self.W_enc = nn.Parameter(directions.T)
        self.scale = nn.Parameter(torch.ones(self.d_sae)) if self.tied else None
        self.W_skip = nn.Parameter(torch.zeros(self.d_in, self.d_out)) if skip else None

    def _make_own(self, seed: int) -> None:
        parameters, state = self.activation.initial(self.d_sae, seed)
        for name, tensor in parameters.items():
            self.register_parameter(f"own_{name}", nn.Parameter(tensor))
        for name, tensor in state.items():
            self.register_buffer(f"own_{name}", tensor)
        self._parameter_names, self._state_names = tuple(parameters), tuple(state)


def _mark_trained(module: nn.Module, incompatible: Any) -> None:
    cast(SparseAutoencoder, module).trained = True
