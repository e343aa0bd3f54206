"""What leaves the PC: .tflite, ONNX, the C array, and the compiler that turns int8 models into C."""
