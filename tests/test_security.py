"""What came from outside is data: pickles are never loaded, tokens never shown, nothing is sent, and text stays text."""

import json
import pickle
import subprocess
import sys

from conftest import SCRIPTS, UNSHARE, clean_environment, needs_namespaces
from test_faults import FLAGS, checkpoint_whole, stop_when
from test_train import results, weights


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w')",))


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


def plant(folder, marker) -> None:
    """Put pickles that spring the trap wherever a library might look for one."""
    for name in ("training_args.bin", "pytorch_model.bin", "adapter_model.bin", "optimizer.bin", "trainer_state.pkl", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Trap(marker)))


def test_pickles_in_model_folders_and_in_the_checkpoint_are_not_loaded(tiny, tmp_path):
    marker = tmp_path / "sprung"
    plant(tiny.output / "base_model", marker)
    tiny.ok(2)
    stop_when(tiny.start(3, *FLAGS, pipe=subprocess.DEVNULL), lambda: checkpoint_whole(tiny, 20), 9)
    for folder in results(tiny).glob("checkpoint-*"):
        plant(folder, marker)
    tiny.ok(3, *FLAGS, "--resume")
    plant(results(tiny) / "final_model", marker)
    tiny.ok(4)
    assert not marker.exists()


def test_a_pickle_in_the_place_of_a_part_of_the_checkpoint_is_refused(tiny, tmp_path):
    marker = tmp_path / "sprung"
    stop_when(tiny.start(3, *FLAGS, pipe=subprocess.DEVNULL), lambda: checkpoint_whole(tiny, 20), 9)
    (folder,) = (path.parent for path in results(tiny).glob("checkpoint-*/trainer_state.json"))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(Trap(marker)))
        assert tiny.error(3, *FLAGS, "--resume") == "error: the checkpoint in output/dpo_results/ is damaged; run without --resume", name
        (folder / name).write_bytes(good)
    assert not marker.exists()


def test_a_model_that_is_only_a_pickle_is_refused(tiny, tmp_path):
    marker = tmp_path / "sprung"
    plant(tiny.output / "base_model", marker)
    (tiny.output / "base_model/model.safetensors").unlink()
    for number in (2, 3):
        assert "model.safetensors is not what was saved there" in tiny.error(number)
    assert not marker.exists()


@needs_namespaces
def test_whole_pipeline_without_a_network(tiny, tmp_path):
    """Steps 1 to 4 in a namespace without routes, from a ready base model; a hook in the interpreter writes down every attempt to connect."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "def hook(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto') and getattr(args[0], 'family', 2) != 1:\n"
        f"        open({str(tmp_path / 'attempts')!r}, 'a').write(f'{{event}} {{args}}\\n')\n"
        "sys.addaudithook(hook)\n"
    )
    env = clean_environment(tiny.root) | {"PYTHONPATH": str(tmp_path)}
    connect = [sys.executable, "-c", "import socket; socket.socket().connect(('127.0.0.1', 1))"]
    assert subprocess.run([*UNSHARE, *connect], env=env, capture_output=True).returncode != 0
    assert (tmp_path / "attempts").read_text().startswith("socket.connect")
    (tmp_path / "attempts").unlink()
    for number in "1234":
        script = tiny.root / "code/chapter02_dpo" / SCRIPTS[number].name
        flags = ["--max-steps", "5"] if number == "3" else []
        done = subprocess.run([*UNSHARE, sys.executable, str(script), *flags], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert json.loads((tiny.output / "after.json").read_text())["heldout"] and weights(results(tiny) / "final_model")
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text()


def test_escape_sequences_do_not_reach_the_terminal(tiny):
    evil = "\x1b]0;title\x07\x1b[31mred\x9b2J"
    path = tiny.output / "heldout_data.json"
    claims = json.loads(path.read_text())
    claims[0]["prompt"] = claims[-1]["prompt"] = evil + claims[0]["prompt"]
    path.write_text(json.dumps(claims))
    pairs = json.loads((tiny.output / "preference_data.json").read_text())
    pairs[0] = {"prompt": evil, "chosen": evil + "a", "rejected": evil + "b"}
    (tiny.output / "preference_data.json").write_text(json.dumps(pairs))
    printed = tiny.ok(2, "--ask", evil) + tiny.ok(3, "--max-steps", "1") + tiny.ok(4, "--ask", evil)
    assert printed.count("title") > 5
    assert not {letter for letter in printed if not letter.isprintable()} - {"\n", "\r"}
    pairs[1]["chosen"] = [evil]
    (tiny.output / "preference_data.json").write_text(json.dumps(pairs))
    assert all(letter.isprintable() for letter in tiny.error(3))
    claims[1] = {evil: evil}
    path.write_text(json.dumps(claims))
    assert all(letter.isprintable() for letter in tiny.error(2))
