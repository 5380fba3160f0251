"""Operators of ONNX Runtime (``com.microsoft`` and its other domains), and of Brevitas, of which nothing is cut."""

from __future__ import annotations

from exporter.rules.registry import freezes


def _freeze(why: str, names: str, domain: str = "com.microsoft") -> None:
    freezes(why, *(f"{domain}::{name}" for name in names.split()))


_freeze(
    "ONNX Runtime runs it on no CPU, so a cut could not be proved; optimise the model after pruning",
    """
    BiasAdd BiasDropout BiasSoftmax BiasSplitGelu BitmaskBiasDropout BitmaskDropout ComplexMul ComplexMulConj
    ConvStateReplay DecoderAttention DecoderMaskedSelfAttention DequantizeBFP DequantizeWithOrder DynamicSparseAttention
    FusedMatMulActivation GatedDeltaNet GatedDeltaNetStateReplay GatedRelativePositionBias GemmFastGelu GemmFloat8
    GemmaRotaryEmbedding GroupNorm HyperConnectionLowRankMix Irfft IsAllFinite LongformerAttention Mamba2Verify
    MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight MatMulNBitsMlp MatMulNBitsQLoRA MatMulNBitsQkv
    MatMulPacked MoEPacked MulInteger NhwcConv NhwcFusedConv PackedAttention PackedMultiHeadAttention
    PackedSparseAttentionIndexer PackedSparseAttentionIndexerMerge PagedAttention QLinearReduceMean QOrderedAttention
    QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention QOrderedMatMul QuantizeBFP QuantizeWithOrder
    RMSNormRotary ReduceSumInteger RelativePositionBias RemovePadding RestorePadding Rfft RouterGateUpProj SkipGroupNorm
    SparseAttentionIndexer SparsePagedAttention SpeculativePrefixCommit SwiGLU TorchEmbedding VarlenCausalConvWithState
    VarlenNGramHashMapping
    """,
)
_freeze(
    "it generates a whole sequence with models inside; prune these models before they are put together",
    "BeamSearch GreedySearch Sampling WhisperBeamSearch",
)
_freeze(
    "it works on tokens and text, which have no channels",
    "BifurcationDetector MurmurHash3 NGramHashMapping NGramRepeatBlock Tokenizer WordConvEmbedding",
)
_freeze(
    "its cache is laid out for beam search or sparse blocks; prune the model before this optimisation",
    "DecoderMaskedMultiHeadAttention SparseAttention",
)
_freeze(
    "its weights are one stream of packed blocks that run across rows; quantize after pruning",
    "GatherPacked MatMulBnb4 MatMulFpQ4 QMoE",
)
_freeze("recurrent weights quantized together; quantize after pruning", "DynamicQuantizeLSTM")
_freeze("a part compiled for one device; prune the model before it is compiled", "EPContext Snpe")
_freeze(
    "an operator of newer fusions whose axes are tied inside; prune the model before this optimisation",
    """
    BranchwiseRMSNorm CausalConvWithState EngramGate GatedRMSNorm HyperConnectionPostMix HyperConnectionPreMix
    LinearAttention LinearAttentionGate MoEGroupRouter MRotaryEmbedding
    """,
)
_freeze("recurrent attention of an old kind, whose parts share their sizes", "AttnLSTM")
_freeze("the result's size depends on data", "Unique")
_freeze("a range of numbers", "Range")
_freeze("every entry depends on the whole matrix", "Inverse")
_freeze("distances between points whose axes it sums over in many ways", "CDist")
_freeze("its result depends on positions", "CropAndResize DynamicTimeWarping MaxpoolWithMask UnfoldTensor")
_freeze("its spatial size is computed at run time", "ConvTransposeWithDynamicPads")
_freeze("a matrix given as a list of entries", "SparseToDenseMatMul")
_freeze(
    "16-bit integers, with which ONNX Runtime computes little else, so a cut could not be proved", "MatMulInteger16"
)
_freeze("an operator for tests", "SampleOp")

_freeze(
    "channels laid out in blocks for one processor; save the model before hardware-specific optimisation",
    "AveragePool Conv GlobalAveragePool GlobalMaxPool MaxPool ReorderInput ReorderOutput Upsample",
    "com.microsoft.nchwc",
)
_freeze(
    "ONNX Runtime's own layout for some devices; save the model before hardware-specific optimisation",
    """
    AveragePool BatchNormalization Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool
    GridSample InstanceNormalization LRN LpPool MaxPool MaxUnpool QLinearAveragePool QLinearConv QLinearConvTranspose
    Resize SpaceToDepth
    """,
    "com.ms.internal.nhwc",
)
for _domain in ("onnx.brevitas", "qonnx.custom_op.general"):
    _freeze(
        "ONNX Runtime does not run it, so a cut could not be proved; export QuantizeLinear, DequantizeLinear instead",
        "BipolarQuant Quant Trunc",
        _domain,
    )
