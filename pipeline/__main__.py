"""`python -m pipeline` is `edgestill`; under torchrun it is one of several processes that train together."""

from pipeline.cli.main import main
from pipeline.environment import several

if __name__ == "__main__":
    if several():
        from pipeline.cli.torchrun import main
    main()
