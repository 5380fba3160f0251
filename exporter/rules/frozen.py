"""Operators of the ONNX standard of which nothing is cut, and why."""

from __future__ import annotations

from exporter.rules.registry import freezes

freezes("its values depend on positions", "Bernoulli", "EyeLike", "RandomNormalLike", "RandomUniformLike")
freezes("its random numbers are drawn for a shape of its own", "Multinomial", "RandomNormal", "RandomUniform")
freezes("the size of its result depends on data", "Compress", "NonMaxSuppression", "NonZero", "Unique")
freezes("its indices count the elements of the whole tensor", "MaxUnpool")
freezes("its positions are made from sizes", "AffineGrid")
freezes("it is a table made from its length", "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix")
freezes("its frames and frequencies are positions in a signal", "STFT")
freezes("the number of elements is read at run time", "Size")
freezes("it decodes a file", "ImageDecoder")
freezes(
    "it belongs to training",
    "NegativeLogLikelihoodLoss",
    "SoftmaxCrossEntropyLoss",
    *(f"ai.onnx.preview.training::{op}" for op in ("Adagrad", "Adam", "Gradient", "Momentum")),
)
freezes(
    "a sequence holds tensors of any shape",
    "ConcatFromSequence",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "SplitToSequence",
)
freezes("an optional value may be absent at run time", "Optional", "OptionalGetElement", "OptionalHasElement")
freezes("it works on text", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer")
freezes("ONNX Runtime does not run it yet, so no cut of it could be proved", "ai.onnx.preview::FlexAttention")
freezes(
    "its weights are attributes, one per feature or class",
    *(
        f"ai.onnx.ml::{op}"
        for op in (
            "FeatureVectorizer",
            "Imputer",
            "LinearClassifier",
            "LinearRegressor",
            "Normalizer",
            "OneHotEncoder",
            "SVMClassifier",
            "SVMRegressor",
            "Scaler",
            "TreeEnsemble",
            "TreeEnsembleClassifier",
            "TreeEnsembleRegressor",
        )
    ),
)
freezes(
    "it maps between numbers, names and tables of names",
    *(f"ai.onnx.ml::{op}" for op in ("CastMap", "CategoryMapper", "DictVectorizer", "LabelEncoder", "ZipMap")),
)
freezes("it selects features by data", "ai.onnx.ml::ArrayFeatureExtractor")
