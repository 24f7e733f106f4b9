"""The settings as TOML and as JSON Schema, and the files that are generated from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from echod.config import load as config
from echod.config import render
from echod.config.settings import Setting, Settings, declared
from tests.support.certificates import pem_file
from tests.support.harness import DEADLINE

ROOT = Path(__file__).parents[3]
SETTINGS = list(declared())
SHIPPED = ROOT / "config/echod.toml"
SCHEMA = ROOT / "config/echod.schema.json"

SAMPLES: dict[str, list[object]] = {
    "ADDRESS": ["127.0.0.1", ["127.0.0.1", "::1"], "fe80::1%lo"],
    "ADDRESS:PORT": ["127.0.0.1:9107", "[::1]:0", "*:9107", "off"],
    "BOOL": [True, False],
    "DURATION": ["off", "1ms", "0.0001s", "1.5s", "90m", "366d"],
    "NAME": ["echod", ["echod", "Echod.example.net."], []],
    "NETWORK": ["10.0.0.0/8", ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1"], "::ffff:10.0.0.0/104", []],
    "MODE": ["0666", "600", "0000"],
    "NUMBER": [1, 2, "1k"],
    "PORT": ["off", 0, 65535, "1k"],
    "SIZE": ["auto", 32768, "32Ki"],
    "FILE": [pem_file(), pem_file("two.example")],
    "PATH": ["/run/é b.sock", '/run/"\\', "off"],
    "RATE": ["off", "500/s", "0.1/h", "7.3/m"],
}
"""For each form, values of which at least one is no setting's default."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "echod.toml"


def samples(setting: Setting) -> list[object]:
    """Return values that follow from the declaration, so that a new setting is tested like the others."""
    return SAMPLES.get(setting.form.word) or list(setting.form.schema["enum"])


def toml(settings: Settings) -> str:
    return render.toml(settings.model_dump(mode="json"))


def check_schema(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run check-jsonschema, which editors and pre-commit hooks use."""
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env=os.environ | {"NO_COLOR": "1"},
    )


# The settings as TOML


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_rendered_setting_is_read_as_the_same(setting: Setting, file: Path) -> None:
    """And rendered the same again."""
    default = setting.of(config.load(Path(os.devnull), {}, {}).settings)
    seen = []
    for value in samples(setting):
        more = f"certificate = '{pem_file()}'\n" if setting.name == "tls.port" else ""
        file.write_text(f"[{setting.section}]\n{setting.key} = {json.dumps(value, ensure_ascii=False)}\n{more}")
        settings = config.load(file, {}, {}).settings
        seen.append(setting.of(settings))
        text = toml(settings)
        file.write_text(text)
        again = config.load(file, {}, {}).settings
        assert again == settings
        assert toml(again) == text
    assert any(value != default for value in seen)


def test_settings_are_rendered_by_section_in_the_order_of_the_file() -> None:
    """With one line each."""
    settings = config.load(Path(os.devnull), {"access.allow": "10.0.0.0/8,::1", "timeouts.drain": "off"}, {}).settings
    text = toml(settings)
    assert text.startswith(
        '[listen]\nhost = "*"\nport = 7007\nbacklog = 1024\nreuse_port = false\nreceive_buffer = "auto"\nfree_bind = false\n'
        'unix = "off"\nunix_mode = "0660"\n\n[tls]\nport = "off"\n'
    )
    assert (
        '\n\n[access]\nallow = ["10.0.0.0/8", "::1/128"]\ndeny = []\nper_source = 0\naccept_rate = "off"\nproxies = []\n\n'
        in text
    )
    assert '\ndrain = "off"\n' in text
    assert text.endswith('http = "off"\nnames = []\n')
    assert [f"{section}.{key}" for section, keys in tomllib.loads(text).items() for key in keys] == [
        setting.name for setting in SETTINGS
    ]


def test_a_comment_follows_the_value() -> None:
    """And changes nothing, whatever is in it."""
    settings = config.load(Path(os.devnull), {}, {}).settings
    origins = {setting.name: f"of\n{setting.name}" for setting in SETTINGS}
    text = render.toml(settings.model_dump(mode="json"), origins)
    lines = [line for line in text.splitlines() if " = " in line]
    assert [line.partition("  # of\\u000a")[2] for line in lines] == [setting.name for setting in SETTINGS]
    assert tomllib.loads(text) == tomllib.loads(toml(settings))


# The schema


def test_the_schema_is_valid() -> None:
    """By the rules of its draft."""
    done = check_schema("--check-metaschema", SCHEMA)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_has_each_setting_with_its_default() -> None:
    """And no other, with descriptions for editors."""
    sections = json.loads(render.schema())["properties"]
    assert list(sections) == list(Settings.model_fields)
    assert [
        (f"{section}.{key}", json.dumps(value["default"], ensure_ascii=False), value["description"])
        for section, schema in sections.items()
        for key, value in schema["properties"].items()
    ] == [(setting.name, setting.default, render.described(setting)) for setting in SETTINGS]


def test_the_schema_accepts_what_the_program_accepts(tmp_path: Path) -> None:
    """The shipped file, and each form in which a value can be written."""
    files = [SHIPPED]
    for index in range(max(len(samples(setting)) for setting in SETTINGS)):
        text = "".join(
            f"{setting.name} = {json.dumps(samples(setting)[index % len(samples(setting))], ensure_ascii=False)}\n"
            for setting in SETTINGS
        )
        path = tmp_path / f"{index}.toml"
        path.write_text(text)
        config.load(path, {"access.deny": "[]", "access.allow": "[]", "listen.unix": "off"}, {})
        files.append(path)
    done = check_schema("--schemafile", SCHEMA, *files)
    assert done.returncode == 0, done.stdout + done.stderr


BAD: dict[str, str] = {
    "an unknown key": "[pool]\nsise = 1",
    "an unknown section": "[pol]",
    "a wrong type": "[listen]\nreuse_port = 1",
    "a section that is no table": "pool = 3",
    "a number below its bounds": "[pool]\nsize = 0",
    "a number above its bounds": "[listen]\nport = 65536",
    "no number": "[pool]\nsize = 'ten'",
    "a number with a fraction": "[pool]\nsize = 1.5",
    "a duration without unit": "[timeouts]\nidle = '30'",
    "a duration that is a number": "[timeouts]\nidle = 30",
    "a rate without unit": "[access]\naccept_rate = '500'",
    "none of the choices": "[log]\nlevel = 'loud'",
    "a list of numbers": "[access]\nallow = [1]",
    "no host": "[listen]\nhost = []",
    "a host twice": "[listen]\nhost = ['::1', '::1']",
}


def test_the_schema_refuses_what_the_program_refuses(tmp_path: Path) -> None:
    """As far as JSON Schema can express it."""
    for name, text in BAD.items():
        (tmp_path / f"{name}.toml").write_text(text)
    done = check_schema("--schemafile", SCHEMA, "-o", "json", *sorted(tmp_path.glob("*.toml")))
    assert done.returncode == 1
    refused = {Path(error["filename"]).stem for error in json.loads(done.stdout)["errors"]}
    assert refused == set(BAD)
