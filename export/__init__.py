"""What leaves the PC: .tflite, ONNX, the C array, and the compiler from int8 models to C."""
