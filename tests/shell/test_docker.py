"""The container files, read closely. No Docker engine is needed; every `peer` command in them is
parsed by the real command line.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from cli.app import app

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
STATE = "/home/peer/state"

Instruction = tuple[str, str]


def stages() -> dict[str, list[Instruction]]:
    """Each stage of the Dockerfile by name: its instructions, those that it stands on included."""
    text = (DOCKER / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name] = [*found.get(base, []), (word, base)]
        else:
            current.append((word, " ".join(rest.split())))
    return found


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return loaded


def said(stage: list[Instruction], word: str) -> list[str]:
    return [rest for one, rest in stage if one == word]


def parses(arguments: list[str]) -> dict[str, Any]:
    """What the command line makes of it; raises for unknown commands, options and values."""
    group: Any = get_command(app)
    name, *rest = arguments
    context = group.make_context("peer", [name, *rest])
    command = group.get_command(context, name)
    assert command is not None, f"there is no `peer {name}`"
    parameters: dict[str, Any] = command.make_context(name, rest, parent=context).params
    return parameters


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_images_are_slim_pinned_and_not_root(target: str) -> None:
    """What any image should be: a small base, pinned packages, its own user, an init, a volume."""
    stage = stages()[target]
    assert said(stage, "FROM")[0].endswith("-slim")
    installs = [rest for rest in said(stage, "RUN") if "pip install" in rest]
    assert all("constraints.txt" in rest for rest in installs)
    assert said(stage, "USER")[-1] == "peer"
    assert stage.index(("USER", "peer")) > max(
        at for at, (word, _) in enumerate(stage) if word in ("RUN", "COPY")
    )
    assert said(stage, "ENTRYPOINT") == ['["tini", "--", "peer"]']
    assert said(stage, "VOLUME") == [STATE]
    assert f"PEER_HOME={STATE}" in said(stage, "ENV")[0]
    # A volume that is new takes its owner from the image: without this, only root could write.
    assert f"install -d -o peer -g peer {STATE}" in said(stage, "RUN")[0]


def test_only_the_cpu_image_takes_torch_from_the_cpu_index() -> None:
    """The other index holds gigabytes."""
    cpu, cuda = (" ".join(said(stages()[target], "RUN")) for target in ("cpu", "cuda"))
    assert "download.pytorch.org/whl/cpu" in cpu
    assert "download.pytorch.org/whl/cpu" not in cuda
    assert "gcc" in cuda


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_what_is_copied_is_there_and_sent(target: str) -> None:
    """Each source exists, and the ignore file lets it through."""
    allowed = {
        line[1:]
        for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    sources = {name for rest in said(stages()[target], "COPY") for name in rest.split()[:-1]}
    assert sources == allowed
    assert all((ROOT / name).exists() for name in sources)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_image_asks_the_peer_how_it_is(target: str) -> None:
    """A health check that only knows whether a process exists would know nothing."""
    (check,) = said(stages()[target], "HEALTHCHECK")
    command = yaml.safe_load(check.partition("CMD ")[2])
    assert command[0] == "peer"
    assert parses(command[1:])["as_json"] is True


def test_every_service_is_built_checked_and_stopped_gently() -> None:
    """The founder too is one of many."""
    services = compose()["services"]
    assert set(services) == {"founder", "peer"}
    for service in services.values():
        build = service["build"]
        assert (DOCKER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).exists()
        assert build["target"] in stages()
        assert service["image"] == f"peertrain:{build['target']}"
        kind, program, *arguments = service["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "peer")
        parses(arguments)
        assert service["restart"] == "unless-stopped"
        assert int(service["stop_grace_period"].rstrip("s")) >= 10
        assert "container_name" not in service, "a name of its own cannot be scaled"
        assert "depends_on" not in service, "nobody is needed"


def test_commands_are_what_the_command_line_takes() -> None:
    """The founder founds and writes the invite where the others wait for it."""
    services = compose()["services"]
    founder = services["founder"]["command"]
    assert founder[0] == "start"
    founded = parses(founder)
    config = Path(founded["config"]).relative_to("/app")
    assert (ROOT / config).exists()
    assert founded["advertise"] == ["tcp://founder:7700"]
    joins = services["peer"]["command"]
    assert joins[0] == "join"
    joined = parses(joins)
    assert joined["invite_file"] == founded["invite_file"]
    assert joined["wait"] >= 60
    assert founded["listen"] == joined["listen"] == ["tcp://0.0.0.0:7700"]
    # Two replicas with one fixed name would claim one address.
    assert not joined["advertise"]


def test_each_replica_has_its_own_identity() -> None:
    """Two processes with one key would be one peer that signs two things: an equivocator."""
    loaded = compose()
    services, named = loaded["services"], set(loaded["volumes"])
    mounts = {
        name: {rest.split(":")[-1 if ":" not in rest else 1]: rest for rest in service["volumes"]}
        for name, service in services.items()
    }
    assert mounts["peer"][STATE] == STATE, "an anonymous volume: one for each replica"
    assert mounts["founder"][STATE].split(":")[0] in named
    invite = Path(parses(services["peer"]["command"])["invite_file"]).parent.as_posix()
    assert mounts["founder"][invite].split(":")[0] == mounts["peer"][invite].split(":")[0]
    assert mounts["peer"][invite].endswith(":ro")


def test_the_gpu_file_changes_both_services() -> None:
    """An override: image, target and a device, for the same services."""
    services = compose("compose.cuda.yaml")["services"]
    assert set(services) == set(compose()["services"])
    for service in services.values():
        assert service["build"]["target"] in stages()
        assert service["image"] == "peertrain:cuda"
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


def test_commands_in_the_readme_parse() -> None:
    """Every `peer` command that the page shows."""
    text = re.sub(r"\\\n\s*", " ", (DOCKER / "README.md").read_text())
    found = 0
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            arguments = _peer_arguments(words)
            if arguments:
                parses(arguments)
                found += 1
    assert found >= 4


def _peer_arguments(words: list[str]) -> list[str]:
    """What follows the image's name in `docker run`, or `peer` in `docker exec`."""
    for at, word in enumerate(words):
        if word.startswith("peertrain:") or (
            word == "peer" and words[at - 1] in ("peer", "founder")
        ):
            return words[at + 1 :]
    return []
