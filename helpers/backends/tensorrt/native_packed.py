"""BERT in TensorRT's own layers for packed input: sequences end to end, activations [T, E], no padding computed.

Only attention looks across tokens. Where the builder has a fused kernel for it, it takes the packed tokens as they are;
else tokens are gathered into padded rows [B, Smax] just around it, by indices that the network makes from cu_seqlens.
"""

import numpy as np

from helpers.backends.tensorrt.native_layers import NativeWriter
from helpers.network_layers import Tensor


def has_packed_attention(trt) -> bool:
    """Whether the attention layer can be asked for packed tokens; the builder may still have no kernel for it."""
    return hasattr(trt, "AttentionIOForm")


class PackedNativeLayers(NativeWriter):
    """NetworkLayers for packed input in native layers: ids and segments [T], cu_seqlens [B+1], max_seqlen [Smax].

    `sizes` bound T and Smax.
    """

    rank = 2

    def _make_inputs(self, max_tokens: int, max_length: int) -> None:
        self.input_ids, self.segment_ids, self.cu_seqlens, self.max_seqlen = self.network_inputs("packed", (-1,))
        starts, ends = self._bounds("packing")
        sequence = self._locate_tokens(starts, ends, max_tokens, "packing")
        self._prepare_attention(starts, ends, sequence, max_length)

    def _prepare_attention(self, starts: Tensor, ends: Tensor, sequence: Tensor, max_length: int) -> None:
        """What attention needs of the sequences: the indices that take tokens to padded rows and back."""
        self._unpad(starts, ends, sequence, max_length, "unpadding")

    # Words of NetworkLayers that are not the padded network's

    def attention(self, query_key_value, heads, name):
        rows = self.gathered(query_key_value, self.token_of_slot, f"{name}/padded")
        padded = super().attention(rows, heads, name)
        slots = self.reshaped(padded, f"{name}/slots", shape=(-1, heads * self.config.head_size))
        return self.gathered(slots, self.slot_of_token, f"{name}/packed")

    # Parts

    def _positions(self, table, name):
        return self._gather(table, self.position, name)

    def _bounds(self, name: str) -> tuple[Tensor, Tensor]:
        """Where each sequence starts, and where it ends: cu_seqlens without its last, and without its first, [B]."""
        bounds = self._length(self.cu_seqlens, f"{name}/bounds")
        zero, one = (self.integers([n], f"{name}/{n}", self.shape_type(bounds)) for n in (0, 1))
        sequences = self.elementwise(bounds, one, "SUB", f"{name}/sequences")
        starts = self.part(self.cu_seqlens, zero, sequences, f"{name}/starts")
        return starts, self.part(self.cu_seqlens, one, sequences, f"{name}/ends")

    def _locate_tokens(self, starts: Tensor, ends: Tensor, max_tokens: int, name: str) -> Tensor:
        """Sets `position`, each token's place in its sequence; returns the sequences themselves; both int32 [T]."""
        tokens = self._range(self.input_ids, max_tokens, f"{name}/tokens")
        sequence = self.sequence_of(tokens, ends, name)
        start = self.gathered(starts, sequence, f"{name}/start")
        self.position = self.elementwise(tokens, start, "SUB", f"{name}/position")
        return sequence

    def _unpad(self, starts: Tensor, ends: Tensor, sequence: Tensor, max_length: int, name: str) -> None:
        """Sets `token_of_slot` and `input_mask`, over the slots of padded rows [B, Smax], and `slot_of_token` [T].

        Slots behind a sequence's end hold copies of its last token, masked.
        """
        places = self.as_row(self._range(self.max_seqlen, max_length, f"{name}/places"), f"{name}/place_row")
        lengths = self.column(self.elementwise(ends, starts, "SUB", f"{name}/lengths"), f"{name}/length_column")
        self.input_mask = self.elementwise(places, lengths, "LESS", f"{name}/mask")
        one = self.integers([[1]], f"{name}/one")
        last = self.elementwise(lengths, one, "SUB", f"{name}/last")
        places = self.elementwise(places, last, "MIN", f"{name}/clipped")
        first = self.column(starts, f"{name}/start_column")
        self.token_of_slot = self.elementwise(first, places, "SUM", f"{name}/token_of_slot")
        longest = self.int32(self._length(self.max_seqlen, f"{name}/longest"), f"{name}/longest_int32")
        first = self.elementwise(sequence, longest, "PROD", f"{name}/first_slot")
        self.slot_of_token = self.elementwise(first, self.position, "SUM", f"{name}/slot_of_token")

    def _length(self, tensor: Tensor, name: str) -> Tensor:
        """The shape tensor [1] of a 1-D tensor."""
        return self.output(self.network.add_shape(tensor), name)

    def _range(self, tensor: Tensor, at_most: int, name: str) -> Tensor:
        """0, 1, 2… as many as the 1-D `tensor` is long, int32."""
        return self.first(np.arange(at_most), self._length(tensor, f"{name}/length"), name)


class FusedPackedNativeLayers(PackedNativeLayers):
    """The same with attention by TensorRT's own kernel for packed tokens.

    A builder does not have that for every type, head size and GPU; without one such a network fails to build.
    """

    def _prepare_attention(self, starts, ends, sequence, max_length):
        pass  # the kernel takes the tokens as they are

    def attention(self, query_key_value, heads, name):
        """softmax(query · keyᵀ) · value within each sequence, [T, N, H] each → [T, N·H]."""
        split = self.reshaped(query_key_value, f"{name}/heads", shape=(0, 3, heads, self.config.head_size))
        trt, (query, key, value) = self.trt, self._attention_inputs(self._parts(split, 1, name), 3, name)
        softmax, not_causal = trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
        layer = self.network.add_attention_v2(query, key, value, softmax, not_causal)
        if layer is not None:
            layer.query_form = layer.key_value_form = trt.AttentionIOForm.PACKED_NHD
            layer.query_lengths = layer.key_value_lengths = self.cu_seqlens
            if self.quantize_attention:
                self._quantize_probabilities(layer, name)
        context = self.output(layer, f"{name}/attention")
        return self.reshaped(context, f"{name}/context", shape=(0, heads * self.config.head_size))
