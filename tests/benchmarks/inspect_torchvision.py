"""Does `edgestill inspect` agree with the multiply-adds that torchvision publishes?

    python tests/benchmarks/inspect_torchvision.py > inspect.json

Every classification model of torchvision at the input size of its default weights, `weights.meta["_ops"]` in GMACs with
three decimals. Prints one json object: how many agree to the printed digits; for each that does not, what is not
counted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torchvision

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from cli_runner import cli  # noqa: E402

HALF_A_DIGIT = 0.00051


def main() -> None:
    models = torchvision.models
    rows, differ = 0, []
    for name in models.list_models(module=models):
        weights = models.get_model_weights(name).DEFAULT
        (side,) = weights.transforms().crop_size
        subject = f"torchvision:{name}" + (f"?image_size={side}" if name.startswith("vit") else "")
        result = cli("inspect", subject, "--input", f"1,3,{side},{side}", "--json")
        if result.code:
            differ.append({"model": name, "error": result.err.strip()})
            continue
        rows += 1
        found, published = result.json["macs"] / 1e9, weights.meta["_ops"]
        if abs(found - published) > HALF_A_DIGIT:
            uncounted = sorted(result.json["uncounted"])
            differ.append({"model": name, "gmacs": round(found, 3), "published": published, "uncounted": uncounted})
        print(f"{name}: {found:.3f}, published {published:.3f}", file=sys.stderr)
    print(
        json.dumps(
            {
                "command": "python tests/benchmarks/inspect_torchvision.py",
                "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
                "models": rows,
                "agree_to_three_digits": rows - sum("gmacs" in row for row in differ),
                "differ": differ,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
