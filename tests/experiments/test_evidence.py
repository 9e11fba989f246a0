"""The page that sets the paper beside several models, on manifests as the experiments write them."""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from driftlens.options.program import run_command
from experiments import evidence
from experiments.artifacts import Artifact, Claim, Number, write


def artifact(window: int, answer: str, here: str) -> Artifact:
    return Artifact(
        name="figure5",
        title="Figure 5. Patching attention weights",
        caption="A caption.",
        figure=go.Figure(),
        drawn=pd.DataFrame({"x": [1]}),
        cases=pd.DataFrame({"x": [1]}),
        numbers=[Number(name="change of P(o_true)", paper="+28.6 %", here=here)],
        claims=[
            Claim(claim=f"Patching {window} layers' attention lowers P(o_edit).", answer=answer, because="It | does.")  # pyright: ignore[reportArgumentType]
        ],
    )


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    real, bundled = tmp_path / "figures" / "real", tmp_path / "figures"
    write(artifact(10, "no", "+1.0 %"), real, {"model": "real", "data": "d"}, png=False)
    write(artifact(3, "yes, strongly", "+394.5 %"), bundled, {"model": "demo", "data": "demo"}, png=False)
    return real, bundled


def test_claims_that_differ_in_a_window_only_share_a_row(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    real, bundled = folders
    assert run_command(evidence.main, [f"Real={real}", f"bundled={bundled}", "--out", str(bundled)]) == 0
    text = (bundled / "evidence.md").read_text()
    (claim,) = [line for line in text.splitlines() if "lowers P(o_edit)" in line]
    assert claim == (
        "| Figure 5 | Patching 10 layers' attention lowers P(o_edit). | [**no**](real/figure5.md) It \\| does. | "
        "[**yes, strongly**](figure5.md) It \\| does. |"
    )
    assert "| change of P(o_true) | +28.6 % | +1.0 % | +394.5 % |" in text
    assert capsys.readouterr().out.startswith("wrote ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["nothing"], "LABEL=FOLDER"), (["A=/nowhere"], "holds no figure or table"), ([], "required")],
)
def test_mistakes_are_one_line(arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_command(evidence.main, [*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
