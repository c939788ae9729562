"""The merge of YAML and command line, and the three traps of HfArgumentParser that it closes."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llava_ial.config import load_yaml, parse_config, save_config
from llava_ial.errors import UserError


@dataclass
class Settings:
    data: Path = field(metadata={"help": "data set folder"})
    learning_rate: float = field(default=1e-3, metadata={"help": "step size"})
    steps: int = field(default=10, metadata={"help": "how many"})
    shuffle: bool = field(default=True, metadata={"help": "new order"})
    names: list[str] = field(default_factory=list, metadata={"help": "some names"})
    note: str | None = field(default=None, metadata={"help": "free text"})


def _parse(tmp_path: Path, text: str, *arguments: str) -> Settings:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return parse_config(Settings, description="test", argv=["--config", str(path), *arguments])[0]


def test_scientific_notation_in_yaml_is_a_float(tmp_path: Path) -> None:
    settings = _parse(tmp_path, "data: d\nlearning_rate: 2e-4\n")
    assert settings.learning_rate == 2e-4
    assert isinstance(settings.learning_rate, float)


def test_required_field_may_come_from_yaml_and_is_missed_without(tmp_path: Path) -> None:
    assert _parse(tmp_path, "data: d").data == Path("d")
    with pytest.raises(UserError, match="--data"):
        _parse(tmp_path, "steps: 3")


def test_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"settings.yaml: unknown key 'learning_rte'; did you mean 'learning_rate'\?"):
        _parse(tmp_path, "data: d\nlearning_rte: 1")


def test_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown option --stepps 3 \(did you mean --steps\?\)"):
        _parse(tmp_path, "data: d", "--stepps", "3")
    with pytest.raises(UserError, match=r"unknown option --xyz=3 \(see --help\)"):
        _parse(tmp_path, "data: d", "--xyz=3")


def test_help_says_what_an_option_and_its_opposite_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config(Settings, description="test", argv=["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "new order (default: True)" in shown
    assert "--no_shuffle, --no-shuffle the same as --shuffle false" in shown


def test_command_line_wins_and_the_rest_stays(tmp_path: Path) -> None:
    settings = _parse(tmp_path, "data: d\nsteps: 3\nshuffle: false\nnames: [a, b c]\nnote: null", "--steps", "4")
    assert (settings.steps, settings.shuffle, settings.names, settings.note) == (4, False, ["a", "b c"], None)


def test_wrong_type_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="steps"):
        _parse(tmp_path, "data: d\nsteps: many")


@pytest.mark.parametrize(("text", "why"), [("- a\n- b", "found a list"), ("a: [", "not YAML")])
def test_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        _parse(tmp_path, text)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        parse_config(Settings, description="test", argv=["--config", str(tmp_path / "nowhere.yaml")])


def test_saved_configuration_reads_back_the_same(tmp_path: Path) -> None:
    first = _parse(tmp_path, "data: d\nlearning_rate: 2e-4\nnames: [a, b]", "--no_shuffle")
    save_config(tmp_path / "saved.yaml", first)
    assert load_yaml(tmp_path / "saved.yaml")["shuffle"] is False
    again = parse_config(Settings, description="test", argv=["--config", str(tmp_path / "saved.yaml")])[0]
    assert again == first
