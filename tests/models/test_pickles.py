"""What a pickle would import, read off without running it, against an unpickler that only takes notes."""

import collections
import contextlib
import io
import os
import pickle
import pickletools
import subprocess
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attackcheck.errors import InputError
from attackcheck.models.archives import Archive
from attackcheck.models.checkpoint import load_module, load_state
from attackcheck.models.pickles import COMPUTED, harmless, imports_of, never_permitted


class Notes(pickle.Unpickler):
    """Imports nothing; writes down what it was asked for."""

    def __init__(self, data):
        super().__init__(io.BytesIO(data))
        self.names = []

    def find_class(self, module, name):
        self.names.append(f"{module}.{name}")
        return Anything

    def persistent_load(self, _pid):
        return None


class Anything:
    def __new__(cls, *_args, **_kwargs):
        return object.__new__(cls)

    def __call__(self, *_args, **_kwargs):
        return self

    def __setitem__(self, key, value):
        pass

    def extend(self, values):
        pass

    def append(self, value):
        pass

    def add(self, value):
        pass


class Call:
    """Calls a function with arguments when it is unpickled."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


THINGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner)
        | st.builds(Call, st.sampled_from([os.getcwd, subprocess.call, print, collections.Counter, eval, dict]), inner)
        | st.builds(lambda x: collections.OrderedDict([("x", x)]), inner)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@given(thing=THINGS, same=st.booleans())
def test_every_import_is_seen(protocol, thing, same):
    data = pickle.dumps([thing, thing] if same else thing, protocol)
    notes = Notes(data)
    notes.load()
    assert imports_of(data) == tuple(dict.fromkeys(notes.names))
    assert imports_of(pickletools.optimize(data)) == imports_of(data)


def test_names_that_are_hidden_are_seen_or_said_to_be_computed():
    through_memo = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94000h\x00h\x01\x93."  # pushed, popped, and fetched again
    through_memo = through_memo.replace(b"000", b"00")
    assert imports_of(through_memo) == ("os.system",)
    twice = b"\x80\x04\x8c\x02os2\x8c\x06system\x93."  # DUP of a string
    assert imports_of(twice) == ("os.system",)
    computed = b"\x80\x04" + b"c__builtin__\ngetattr\n" + b"\x8c\x02os\x85R\x8c\x06system\x93."
    assert COMPUTED in imports_of(computed)
    assert imports_of(b"\x80\x02\x82\x05.") == ("(extension 5)",)
    assert imports_of(b"(S'x'\nios\nsystem\n.") == ("os.system",)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x04\x8c", b"\x93.", b"h\x00.", b"0.", b"t.", b"\x80\x04" * 10])
def test_broken_instructions_are_an_error(data):
    with pytest.raises(InputError, match="pickle"):
        imports_of(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_an_error(data):
    with contextlib.suppress(InputError):
        assert all(isinstance(name, str) for name in imports_of(data))


def test_both_formats_of_torch_are_read(tmp_path):
    content = {"a": torch.zeros(3), "b": torch.nn.Parameter(torch.ones(2, dtype=torch.float64)), "c": {1, 2}}
    for legacy in (False, True):
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
        data = (tmp_path / "x.pt").read_bytes()
        found = imports_of(data if legacy else Archive(data, "x")["data.pkl"])
        assert any("_rebuild_tensor_v2" in name for name in found)
        assert all(map(harmless, found)), found


@pytest.mark.parametrize(
    "name", ["os.system", "posix.system", "builtins.eval", "subprocess.Popen", "importlib.import_module", COMPUTED]
)
def test_what_runs_anything_is_neither_harmless_nor_permitted(name, tmp_path):
    assert not harmless(name)
    assert never_permitted(name)
    torch.save({"a": Call(os.mkdir, str(tmp_path / "made"))}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"posix\.mkdir") as caught:
        load_state(tmp_path / "evil.pt")
    assert "--allow-global" not in str(caught.value)
    for allowed in (name, "posix.mkdir", "os.mkdir"):
        with pytest.raises(InputError, match="refused"):
            load_state(tmp_path / "evil.pt", allowed=[allowed])
    assert not (tmp_path / "made").exists()


def test_a_whole_module_needs_every_class_to_be_named(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU())
    torch.save(network, tmp_path / "net.pt")
    names = [f"torch.nn.modules.{name}" for name in ("container.Sequential", "conv.Conv2d", "activation.ReLU")]
    for missing in range(3):
        with pytest.raises(InputError, match=names[missing]):
            load_module(tmp_path / "net.pt", allowed=[name for name in names if name != names[missing]])
    found = load_module(tmp_path / "net.pt", allowed=names)
    assert found is not None
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(found[0](x), network(x))
    with pytest.raises(InputError, match="torch"):  # permission was for that call alone
        load_state(tmp_path / "net.pt")
    torch.save(network.state_dict(), tmp_path / "state.pt")
    assert load_module(tmp_path / "state.pt", allowed=names) is None
    with pytest.raises(InputError, match="fails"):
        load_module(tmp_path / "net.pt", allowed=["nowhere.Thing"])
    with pytest.raises(InputError, match="refused"):
        load_module(tmp_path / "net.pt", allowed=["Sequential"])


def archive(*members, **options):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as made:
        for name, content in members:
            made.writestr(zipfile.ZipInfo(name), content, **options)
    return target.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (archive(("../evil.py", "x")), "inside"),
        (archive(("/etc/passwd", "x")), "inside"),
        (archive(("a\\..\\..\\evil", "x")), "inside"),
        (archive(("C:/evil", "x")), "inside"),
        (archive(("bomb", b"\0" * 10_000_000), compress_type=zipfile.ZIP_DEFLATED), "unpacks to 10000000 bytes"),
        (archive(("a", "x"))[:-10], "truncated"),
    ],
)
def test_archives_are_looked_at_before_they_are_opened(data, message):
    with pytest.raises(InputError, match=message):
        Archive(data, "file.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_comes_twice_is_refused():
    with pytest.raises(InputError, match="twice"):
        Archive(archive(("a", "x"), ("a", "y")), "file.pt")


def test_a_member_whose_sum_is_wrong_is_refused():
    data = archive(("top/a", b"some content"), ("top/b", b""))
    broken = data.replace(b"some content", b"more content")
    assert Archive(data, "file.pt")["a"] == b"some content"
    with pytest.raises(InputError, match="broken"):
        _ = Archive(broken, "file.pt")["a"]
