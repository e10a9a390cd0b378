"""Files of weights and checkpoints that were made to do harm."""

import collections
import functools
import hashlib
import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile

import torch


class Call:
    """Pickled, it is a call of ``function`` for whoever unpickles it."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def named(module, name):
    """A function that is not imported here, by name."""
    return type(name, (), {"__module__": module, "__qualname__": name})


class _Names(pickle._Pickler):
    """Writes classes by the name they state, whether they are there or not."""

    def save_global(self, obj, name=None):
        self.write(pickle.GLOBAL + f"{obj.__module__}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch = {**pickle._Pickler.dispatch, type: lambda self, obj: self.save_global(obj)}  # noqa: RUF012


def pickled(value):
    file = io.BytesIO()
    _Names(file, protocol=2).dump(value)
    return file.getvalue()


def as_torch(pickle_bytes, records=(), compression=zipfile.ZIP_STORED):
    """What ``torch.save`` would have written around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/version", "3\n")
        for name, content in records:
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def gadgets(canary):
    """Pickles by name: each would write ``canary``, or something else that is not a tensor."""
    shell, code = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    calls = {
        "os.system": ("os", "system", shell),
        "posix.system": ("posix", "system", shell),
        "os.popen": ("os", "popen", shell),
        "subprocess.Popen": ("subprocess", "Popen", ["touch", str(canary)]),
        "subprocess.run": ("subprocess", "run", ["touch", str(canary)]),
        "eval": ("builtins", "eval", code),
        "exec": ("builtins", "exec", code),
        "eval of Python 2": ("__builtin__", "eval", code),
        "open": ("builtins", "open", str(canary), "w"),
        "__import__": ("builtins", "__import__", "antigravity"),
        "getattr": ("builtins", "getattr", "text", "upper"),
        "runpy": ("runpy", "_run_code", code, {}),
        "timeit": ("timeit", "timeit", code),
        "numpy runstring": ("numpy.testing._private.utils", "runstring", code, {}),
        "pickle in a pickle": ("pickle", "loads", pickled(Call(named("os", "system"), shell)).decode("latin-1")),
        "torch.hub": ("torch.hub", "load", str(canary.parent), "anything"),
        "torch.load": ("torch.serialization", "load", str(canary)),
        "torch.fx": ("torch.fx.graph_module", "reduce_graph_module", {"_code": code}, ""),
        "torch.jit": ("torch.jit", "CompilationUnit", code),
        "torch.ops.load_library": ("torch._ops", "load_library", str(canary)),
        "torch._rebuild_from_type_v2": ("torch._tensor", "_rebuild_from_type_v2", named("os", "system"), shell),
        "Path.write_text": ("pathlib", "Path.write_text", str(canary), "x"),
        "shutil.rmtree": ("shutil", "rmtree", str(canary.parent)),
        "argparse.Namespace": ("argparse", "Namespace"),
        "Lightning instantiator": ("pytorch_lightning.core.saving", "_instantiator", shell),
    }
    found = {name: pickled({"model": Call(named(*call[:2]), *call[2:])}) for name, call in calls.items()}
    text = b"X" + _long("x" * 500_000) + b"q\x00"
    encode, ordered = b"c_codecs\nencode\n", b"collections\nOrderedDict\nq\xff"
    items = pickle.dumps([(i, i) for i in range(20_000)], protocol=2)[2:-1]
    return found | {
        "os.system by STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + _short(shell) + b"\x85R.",
        "os.system by INST": b"(S'" + shell.encode() + b"'\nios\nsystem\n.",
        "os.system by OBJ": b"(cos\nsystem\nS'" + shell.encode() + b"'\no.",
        "os.system by NEWOBJ": b"\x80\x02cos\nsystem\nX" + _long(shell) + b"\x85\x81.",
        "an extension code": b"\x80\x02\x82\x01)R.",
        "a state for a class": b"\x80\x02ccollections\nOrderedDict\n)R}X" + _long("__class__") + b"}sb0.",
        "copies of a text": b"\x80\x02(" + text + encode + b"q\x02h\x00\x85R" + b"h\x02h\x00\x85R" * 50_000 + b"l.",
        "copies of a list": b"\x80\x02(c" + ordered + items + b"q\xfe\x85R" + b"h\xffh\xfe\x85R" * 50_000 + b"l.",
        "copies of a dict": pickled(Call(collections.OrderedDict, [(str(i), i) for i in range(20_000)])),
        "a thousand states": b"\x80\x02(" + (b"ccollections\nOrderedDict\n)R}(K\x01K\x02ub") * 1000 + b"l.",
        "not a pickle": b"hello",
        "no end": b"\x80\x02}",
    }  # fmt: skip


def _short(text):
    return bytes([len(text)]) + text.encode()


def _long(text):
    return struct.pack("<I", len(text)) + text.encode()


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def saved_before_zip(value):
    """What torch before 1.6 would have saved."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def as_torch_before_zip(pickle_bytes):
    """A file of torch before 1.6 with this pickle as its content."""
    empty = saved_before_zip({})
    content = empty.rindex(b"\x80\x02}q\x00.")
    return empty[:content] + pickle_bytes + empty[content + len(b"\x80\x02}q\x00.") :]


def without_list(saved):
    """A file of torch before 1.6 that says of none of its storages that their bytes follow."""
    start = saved.rindex(b"\x80\x02]q\x00")
    return saved[:start] + b"\x80\x02]q\x00." + saved[saved.index(b".", start) + 1 :]


def with_zip(first, archive):
    """A file that is the first from its start, and a zip archive from its end."""
    file = io.BytesIO(first)
    with zipfile.ZipFile(file, "a") as joined, zipfile.ZipFile(io.BytesIO(archive)) as records:
        for name in records.namelist():
            joined.writestr(name, records.read(name))
    return file.getvalue()


def archives(weights):
    """``.pt`` files by name that say more than they hold, or do not hold what a detector needs."""
    name = "backbone.body.conv1.weight"
    good = saved({"model": weights})
    state = zipfile.ZipFile(io.BytesIO(good))
    pickle_bytes = state.read(next(n for n in state.namelist() if n.endswith("data.pkl")))
    zeros = [("data/0", bytes(100_000_000))]
    bomb = as_torch(pickled({}), zeros, zipfile.ZIP_DEFLATED)
    claims = bytearray(as_torch(pickled({}), [("data/0", b"1234")]))
    entry = claims.rindex(b"PK\x01\x02")
    claims[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    twice = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(twice, "w") as archive:
        warnings.simplefilter("ignore")  # that the name is there already
        for _ in range(2):
            archive.writestr("archive/data.pkl", pickled({}))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        info = tarfile.TarInfo("../storages")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"1234"))
    old = saved_before_zip({"model": weights})
    return {
        "a compressed bomb": bomb,
        "a directory that promises 2 GB": bytes(claims),
        "a zip in a zip": as_torch(good),
        "a zip in a zip's record": as_torch(b"\x80\x02X" + _long("no tensors") + b".", [("data/0", bomb)]),
        "two pickles": twice.getvalue(),
        "no pickle": as_zip({"archive/version": b"3\n"}),
        "a pickle of 50 MB": as_torch(b"\x80\x02(" + b"N" * 50_000_000 + b"l."),
        "a tar": tar.getvalue(),
        "the format before torch 1.6, cut off": old[:-1000],
        "the format before torch 1.6, without its tensors": old[: len(old) // 2],
        "the format before torch 1.6, with a tensor of 8 GB": saved_before_zip({"model": torch.zeros(3)}).replace(
            b"K\x03N", b"J\xff\xff\xff\x7fN", 1
        ),
        "the format before torch 1.6, without its list of storages": without_list(old),
        "a bare pickle": pickle_bytes,
        "records missing": as_torch(pickle_bytes),
        "records cut short": as_torch(pickle_bytes, [(f"data/{i}", b"1234") for i in range(200)]),
        "weights that are NaN": saved({"model": {**weights, name: weights[name] * float("nan")}}),
        "weights that are infinite": saved({"model": {**weights, name: weights[name] / 0}}),
        "weights of another shape": saved({"model": {**weights, name: weights[name][:1].clone()}}),
        "weights of a huge shape": saved({"model": {**weights, name: torch.zeros(1).expand(2**20, 2**20)}}),
        "weights that are integers": saved({"model": {**weights, name: weights[name].long()}}),
        "weights that are complex": saved({"model": {**weights, name: weights[name] * 1j}}),
        "weights that are sparse": saved({"model": {**weights, name: weights[name].flatten(1).to_sparse()}}),
        "weights on no device": saved({"model": {**weights, name: weights[name].to("meta")}}),
        "a weight too many": saved({"model": {**weights, "backbone.body.more": torch.zeros(1)}}),
        "two directories": two_directories(good),
        "a list": saved([1, 2]),
        "nothing": b"",
    }


def two_directories(good):
    """A file that Python takes for ``good`` and torch for another, whose pickle wants 300 MB."""
    evil = b"\x80\x02c__builtin__\nbytearray\nJ" + struct.pack("<i", 300_000_000) + b"\x85R."
    source = zipfile.ZipFile(io.BytesIO(good))
    records = {name.replace(name.split("/")[0], "archive", 1): source.read(name) for name in source.namelist()}
    parts = []
    for chosen in ({k: evil if k.endswith("/data.pkl") else v for k, v in records.items()}, records):
        content = as_zip(chosen)
        end = content.rindex(b"PK\x05\x06")
        (place,) = struct.unpack_from("<L", content, end + 16)
        parts.append((content[:place], bytearray(content[place:end]), bytearray(content[end:])))
    (bad_files, bad_list, _), (files, listed, end) = parts
    bad_files += bytes(5000)
    before = len(bad_files) + len(bad_list)
    # Python adds to each place what lies between the directory's true place and the one that is named.
    shift = before + len(files) - len(bad_files)
    position = 0
    while position < len(listed):
        lengths = struct.unpack_from("<HHH", listed, position + 28)
        (at,) = struct.unpack_from("<L", listed, position + 42)
        struct.pack_into("<L", listed, position + 42, (at + before - shift) % 2**32)
        position += 46 + sum(lengths)
    struct.pack_into("<LL", end, 12, len(listed), len(bad_files))
    return bytes(bad_files + bad_list + files + listed + end)


def as_zip(records):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_header(header, content=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def tensors(good):
    """``.safetensors`` files by name, most of them a change of one that is good."""
    length = struct.unpack("<Q", good[:8])[0]
    header, content = json.loads(good[8 : 8 + length]), good[8 + length :]
    # A part beside the backbone that does not fit is left out by a training: no harm, and it is said.
    name, other = [n for n in header if n.startswith("backbone.body.")][:2]
    entry, numbers = header[name], [*header[name]["data_offsets"]]

    def changed(**entries):
        return with_header({**header, name: {**entry, **entries}}, content)

    twice = json.dumps(header).replace("{", '{"' + name + '": ' + json.dumps(entry) + ", ", 1).encode()
    nan = bytearray(content)
    nan[numbers[0] : numbers[0] + 4] = struct.pack("<f", float("nan"))
    return {
        "a header of 2^63 bytes": with_header(header, content, 2**63),
        "a header longer than the file": with_header(header, content, len(good) * 2),
        "a header of 60 MB": with_header(json.dumps(header).encode() + b" " * 60_000_000, content),
        "a header of a million brackets": with_header(b"[" * 1_000_000),
        "a header that is a list": with_header([]),
        "a header that is no JSON": with_header(b"\xff\xfe{"),
        "overlapping tensors": changed(data_offsets=header[other]["data_offsets"]),
        "offsets beyond the end": changed(data_offsets=[numbers[0], 2**40]),
        "offsets that are negative": changed(data_offsets=[-4, numbers[1]]),
        "offsets that run back": changed(data_offsets=numbers[::-1]),
        "a shape of 2^62": changed(shape=[2**62, 4]),
        "a shape that is not the weight's": changed(shape=[1, *entry["shape"]]),
        "an unknown type": changed(dtype="F7"),
        "a type that is not the weight's": changed(dtype="I32"),
        "one name twice": with_header(twice, content),
        "a NaN": with_header(header, bytes(nan)),
        "a byte too few": good[:-1],
        "a byte too many": good + b"\0",
        "metadata that are numbers": with_header({**header, "__metadata__": {"about": 1}}, content),
        "a deep description": with_header({**header, "__metadata__": {"about": "[" * 100_000}}, content),
    }


def descriptions(good):
    """Exported detectors by name whose description asks for too much, or for nonsense."""
    length = struct.unpack("<Q", good[:8])[0]
    header, content = json.loads(good[8 : 8 + length]), good[8 + length :]
    about = json.loads(header["__metadata__"]["about"])

    def described(**settings):
        detector = {**about["detector"], **{k: v for k, v in settings.items() if k in about["detector"]}}
        new = {**about, **{k: v for k, v in settings.items() if k in about}, "detector": detector}
        return with_header({**header, "__metadata__": {"about": json.dumps(new)}}, content)

    return {
        "a billion layers": described(head_depth=10**9),
        "a million channels": described(fpn_channels=10**6),
        "channels that are text": described(fpn_channels="16"),
        "a huge number": described(fpn_channels=10**400),
        "a side of a billion pixels": described(short_side=10**9, max_side=10**9),
        "a side that is infinite": described(anchor_scale=float("inf")),
        "an unknown backbone": described(backbone="os.system"),
        "100,000 classes": described(class_names=[f"c{i}" for i in range(100_000)]),
        "classes that are a number": described(class_names=3),
        "classes that are lists": described(class_names=[["a"]] * 4),
        "an id that is infinite": described(category_ids=[1, 2, 3, float("inf")]),
        "an id of 400 digits": described(category_ids=[1, 2, 3, 10**400]),
        "ids fewer than classes": described(category_ids=[1, 2]),
        "a loss that is a list": described(loss=["dr"]),
        "a loss that commands the terminal": described(loss="dr\x1b]0;title\x07"),
        "a loss of a megabyte": described(loss="dr" * 500_000),
    }  # fmt: skip


def states(good):
    """Checkpoints by name: that of a run with one thing changed, with the word that is to name it."""

    def nested(levels):
        value = ["a"]
        for _ in range(levels):
            value = [value] * 10
        return value

    numpy = good["random"]["numpy"]
    key = {**numpy["state"], "key": torch.zeros(1, dtype=torch.int64).expand(2**28)}
    return {
        "shared lists for classes": ("written out", {"class_names": nested(9)}),
        "shared lists for versions": ("written out", {"versions": {"torch": nested(9)}}),
        "a long text for every class": ("written out", {"class_names": ["x" * 100_000] * 1000}),
        "lists a hundred deep": ("deep", {"data": functools.reduce(lambda value, _: [value], range(100), 1)}),
        "nested lists for classes": ("class_names", {"class_names": nested(2)}),
        "classes that are numbers": ("class_names", {"class_names": [1, 2, 3, 4]}),
        "an id that is infinite": ("category_ids", {"category_ids": [1, 2, 3, float("inf")]}),
        "ids fewer than classes": ("category_ids", {"category_ids": [1, 2]}),
        "a deep configuration": ("config", {"config": "[" * 200_000}),
        "a configuration that is a list": ("config", {"config": "[]"}),
        "a configuration without a detector": ("config", {"config": json.dumps({"max_iters": 1})}),
        "a million for max_iters": ("max_iters", {"config": json.dumps({"max_iters": "9" * 7, "detector": {}})}),
        "an iteration that is infinite": ("iteration", {"iteration": float("inf")}),
        "a negative iteration": ("iteration", {"iteration": -5}),
        "an iteration that is text": ("iteration", {"iteration": "9999999999"}),
        "an iteration that is true": ("iteration", {"iteration": True}),
        "an iteration after the last": ("iteration", {"iteration": 2}),
        "weights that are numbers": ("model", {"model": {"a": 1}}),
        "weights without names": ("model", {"model": {**good["model"], 1: torch.ones(1)}}),
        "a missing field": ("last_ap", {"last_ap": None}),
    }, {
        "a random state of 2^28 numbers": (
            "random.numpy.state.key",
            {"random": {**good["random"], "numpy": {**numpy, "state": key}}},
        ),
        "a random state of one number": ("random.torch", {"random": {**good["random"], "torch": torch.ones(1)}}),
        "a random position without end": (
            "its checkpoint does not fit",
            {"random": {**good["random"], "numpy": {**numpy, "state": {**numpy["state"], "pos": 2**80}}}},
        ),
        "moments that are numbers": (
            "the optimiser's exp_avg",
            {"optimizer": {**good["optimizer"], "state": {0: {"exp_avg": 1.0}}}},
        ),
    }


def sealed(content):
    return content + f"sha256 {hashlib.sha256(content).hexdigest()}\n".encode()
