"""Device code of sigscale: activations, the kernels that run them, and their plain-PyTorch twins."""

if __name__ != "sigscale.kernels":
    raise ImportError(
        f"this folder is the package sigscale.kernels, not {__name__!r}: run `pip install -e .` "
        "in the checkout and `import sigscale`"
    )
