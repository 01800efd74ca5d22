"""Prints the files that `vit export` wrote, and their comparison with the model."""

from collections import Counter
from collections.abc import Sequence

from vit_cli.console import console, say, table, verdict
from vit_cli.export_check import OnData, RandomImages
from vit_core.deployment import Deployment


def print_program(name: str, deployment: Deployment, size: int, version: str, operators: Counter[str]) -> None:
    """Prints the inputs and outputs of a program, its size in bytes, and its operators."""
    shape = ", ".join(map(str, deployment.input_shape))
    outputs = deployment.model.num_classes or deployment.model.features
    say(
        f"{name}: {deployment.target}, {version}, {deployment.precision}, {size / 1e6:,.2f} MB; images "
        f"{deployment.input_type} [{shape}] -> {deployment.output} float32 [{deployment.input_shape[0]}, {outputs}]"
    )
    say("operators: " + ", ".join(f"{operator} {count}" for operator, count in sorted(operators.items())))


def print_random_images(found: Sequence[RandomImages]) -> None:
    """Prints the difference between a program and its twin on random images."""
    for each in found:
        shape = "x".join(map(str, each.shape))
        bound = (
            f"(bound {each.bound:.1g})" if each.bound is not None else "(rounding to 8 bits has no bound; see --data)"
        )
        console.print(
            f"random images {shape}: largest difference {each.relative:.1e} of the scale {bound} {verdict(each.ok)}",
            highlight=False,
        )


def print_on_data(name: str, deployment: Deployment, found: OnData) -> None:
    """Prints the accuracy, differences and speed of a program and of its twin on a data set: top-1 accuracy and
    predictions; mean average precision and the decisions on each class, if images may have several classes."""
    rates = {
        which: (found.images - len(found.twin[0])) / seconds if seconds else 0.0
        for which, seconds in found.seconds.items()
    }
    if found.sets:
        score, what, changed, margins = "mean AP", "decisions changed", found.decisions_changed, found.decision_margins
        between = "each output of the twin and 0, where its class is decided"
    else:
        score, what, changed, margins = "top-1", "top-1 changed", found.changed, found.margins
        between = "the twin's two largest outputs"
    of_twin, of_file = (f"{found.accuracy(which):.2%}" for which in ("twin", "file"))
    difference = f"{found.relative:.1e} of the scale"
    table(
        f"{found.title}: {found.images:,} images, from file to label",
        ("", score, what, "largest difference", "images/s"),
        [
            (f"twin ({deployment.framework}, float32)", of_twin, "", "", f"{rates['twin']:,.0f}"),
            (name, of_file, changed, difference, f"{rates['file']:,.0f}"),
        ],
    )
    say(
        f"margins between {between}: smallest {margins[0]:.2g}, median "
        f"{margins[len(margins) // 2]:.2g}; the largest difference of an output is {found.largest:.2g}"
    )
