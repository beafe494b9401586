"""The stages of the chain, one file each; `pipeline.chain` puts them in order. Each file has a `stage(recipe)`."""
