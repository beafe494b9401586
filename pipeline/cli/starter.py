"""`edgestill init`: a commented recipe for the user's own teacher and folder of images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click

from pipeline.cli.output import say_next
from pipeline.errors import RecipeError

TEMPLATE = Path(__file__).with_name("starter.toml.in")
IMAGES = "photos"


@click.command()
@click.argument("file", default="recipe.toml")
@click.option("--images", default=IMAGES, show_default=True, metavar="DIR", help="Your images, a folder a class.")
@click.option("--teacher", default="torchvision:resnet34", show_default=True, metavar="MODEL", help="The big network.")
@click.option("--weights", default="", metavar="FILE", help="The teacher's weights; without, it is trained.")
@click.option("--student", default="torchvision:mobilenet_v3_small", show_default=True, metavar="MODEL")
@click.option("--image-size", default=224, show_default=True, type=click.IntRange(4, 4096), metavar="PIXELS")
def init(file: str, images: str, teacher: str, weights: str, student: str, image_size: int) -> None:
    """Write a commented recipe to FILE (default: recipe.toml); an existing file is left alone."""
    from pipeline.atomic import write_text
    from pipeline.recipe_file import parse_toml, validate

    path = Path(file)
    if path.suffix != ".toml":
        raise RecipeError(f"{file}: a recipe is a .toml file; write 'edgestill init {file}.toml'")
    if path.exists():
        raise RecipeError(f"{file}: exists and is left as it is; give another name or remove it")
    if not path.parent.is_dir():
        raise RecipeError(f"{file}: no folder {str(path.parent)!r}; make it first")
    text = fill(path, images=images, teacher=teacher, weights=weights, student=student, image_size=image_size)
    validate(parse_toml(text, file), file)  # a model name that does not exist is said before anything is written
    write_text(path, text)
    click.echo(f"wrote {file}")
    if not Path(images).is_dir():
        click.echo(f"put your images into {images}/CLASS/*.jpg, or change data.root")
    say_next(shlex.join(["edgestill", "plan", file]))


def fill(path: Path, *, images: str, teacher: str, weights: str, student: str, image_size: int) -> str:
    """The template with the user's values. JSON's strings are TOML's basic strings."""
    comment = "# trained by this recipe; or a .safetensors, .pt, .pth or .th file of that model"
    values = {
        "FILE": str(path),
        "NAME": json.dumps(re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-") or "recipe"),
        "IMAGES": json.dumps(images, ensure_ascii=False),
        "SIZE": str(image_size),
        "TEACHER": json.dumps(teacher, ensure_ascii=False),
        "WEIGHTS_LINE": f"weights = {json.dumps(weights, ensure_ascii=False)}" + ("" if weights else f"  {comment}"),
        "STUDENT": json.dumps(student, ensure_ascii=False),
    }
    return re.sub("@([A-Z_]+)@", lambda found: values[found[1]], TEMPLATE.read_text(encoding="utf-8"))
