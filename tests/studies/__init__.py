"""Studies on real models: tiny ones, written by the tests as `save_pretrained` writes them."""
