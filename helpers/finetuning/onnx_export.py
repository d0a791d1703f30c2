def write_onnx(path, network, ranges):
    pass
