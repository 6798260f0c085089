from importlib.resources import files

import pytest

from engine import scripts
from engine.scripts import OTHERS, VERBS, script


def test_every_script_in_the_folder_is_named() -> None:
    present = {
        entry.name.removesuffix(".lua")
        for entry in files("lua").iterdir()
        if entry.name.endswith(".lua")
    }
    assert present == {*VERBS, *OTHERS}


@pytest.mark.parametrize("name", [*VERBS, *OTHERS])
def test_a_script_is_assembled_whole(name: str) -> None:
    text = script(name).text
    assert text.startswith("#!lua")
    assert "-- @include" not in text


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_includes_the_group_once(name: str) -> None:
    assert script(name).text.count("local function each_command") == 1


def test_a_missing_include_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"bad.lua": "#!lua\n-- @include nowhere\n"}

    def read(path: str) -> str:
        if path not in texts:
            raise FileNotFoundError(path)
        return texts[path]

    monkeypatch.setattr(scripts, "_read", read)
    script.cache_clear()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        script("bad")
    texts.update({"twice.lua": "#!lua\n-- @include x\n-- @include x\n", "lib/x.lua": ""})
    with pytest.raises(ValueError, match="includes x twice"):
        script("twice")
    script.cache_clear()
