"""Where forwards run: on a CPU in native code, on a GPU through its kernels and captured graphs."""
