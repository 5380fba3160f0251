#!/bin/sh
# The main job on models that ship here: convert, inspect, prune, verify, measure. Called by 'make demo'.
#   usage: models/demo.sh BIN FOLDER     BIN holds python and secateur, FOLDER takes the files made
set -eu
bin=$1
out=$2

run() {
    echo
    echo "\$ $*"
    program=$1
    shift
    "$bin/$program" "$@"
}

run secateur convert models/networks.py:digits_cnn --weights models/digits_cnn.pt -o "$out/digits_cnn.onnx" \
    --input image:1x1x8x8 --dynamic image:0=batch --output-name logits
run secateur inspect "$out/digits_cnn.onnx"
run secateur prune "$out/digits_cnn.onnx" -o "$out/digits_cnn-half.onnx" --macs 0.5 \
    --save-plan "$out/digits_cnn-half.json" --measure
run secateur verify "$out/digits_cnn.onnx" "$out/digits_cnn-half.onnx" --plan "$out/digits_cnn-half.json"
run secateur bench "$out/digits_cnn.onnx" "$out/digits_cnn-half.onnx" --seconds 2
run secateur prune models/digits_vit.onnx -o "$out/digits_vit-80.onnx" --macs 0.8 --scope global --measure
run secateur prune "$out/digits_cnn.onnx" -o "$out/digits_cnn-80.onnx" --macs 0.8 --align 4 --scope global --keep "stem*"
run secateur prune "$out/digits_cnn.onnx" -o "$out/digits_cnn-calibrated.onnx" --macs 0.5 \
    --calib models/digits.npz:train --measure -q
run python models/evaluate.py models/digits_cnn.onnx "$out/digits_cnn-80.onnx" "$out/digits_cnn-half.onnx" \
    "$out/digits_cnn-calibrated.onnx" models/digits_vit.onnx "$out/digits_vit-80.onnx"
echo
echo "Magnitude alone is a poor judge: the same half of the work is left by -half and by -calibrated, which was chosen and fitted on inputs without labels."
