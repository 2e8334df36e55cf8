#!/usr/bin/env python3
"""Verifies Tallystick ledgers. Written from docs/ledger-format.md alone, with nothing but Python 3's standard library.

    verify.py --vectors ledger/chain/testdata
    verify.py --export acme.tsx [--integrity-root FILE]
    verify.py --evidence package.zip --key trusted.txt [--integrity-root FILE]
    verify.py --evidence-vectors ledger/evidence/testdata

Of a package it checks the entries, the checkpoints' signatures, the tree's root at each of them, the proof to the one
beyond the range, digests and sums; not its audit rows and witnesses, which tallystick-verify does.
--integrity-root names a file with a tenant's integrity root in hexadecimal; without it MACs are not checked.
Exit codes: 0 intact, 2 usage, 3 broken, 8 cannot tell.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import sys
import zipfile

KINDS = {1: "usage", 2: "rejected", 3: "correction", 4: "control", 5: "counters", 6: "declared_loss"}
CLASSES = ["input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning",
           "audio_input", "audio_output", "image_input", "image_output"]
MONEY, CORRECTION, REJECTED = ("usage", "correction"), ("correction",), ("rejected",)
CONTROL, COUNTERS = ("control",), ("counters",)
FIELDS = {  # tag: name, form, kinds (None: all)
    1: ("event_id", "text", None), 2: ("tenant_id", "text", None), 3: ("occurred_at", "time", None),
    4: ("producer_id", "text", None), 5: ("producer_epoch", "uint", None), 6: ("producer_seq", "uint", None),
    10: ("provider", "text", None), 11: ("model", "text", None), 12: ("requested_model", "text", None),
    13: ("operation", "text", None), 14: ("region", "text", None), 15: ("service_tier", "text", None),
    16: ("status", "text", None), 17: ("http_status", "uint", None), 18: ("error_type", "text", None),
    20: ("tokens", "tokens", None), 21: ("context_tokens", "uint", None), 22: ("latency_us", "uint", None),
    23: ("ttft_us", "uint", None), 24: ("streamed", "flag", None), 25: ("estimated", "flag", None),
    26: ("provider_request_id", "text", None), 27: ("provider_cost_usd", "text", None),
    28: ("gpu_us", "uint", None), 29: ("gpu_state", "text", None), 30: ("team", "text", None),
    31: ("service", "text", None), 32: ("feature", "text", None), 33: ("agent", "text", None), 34: ("user", "text", None),
    35: ("end_customer", "text", None), 36: ("environment", "text", None), 37: ("tags", "tags", None),
    38: ("purchase_option", "text", None),
    40: ("decision_action", "text", None), 41: ("decision_policy", "text", None), 42: ("decision_reason", "text", None),
    43: ("corrects", "text", None), 44: ("derived_from", "text", None), 45: ("correction_reason", "text", None),
    50: ("received_at", "time", None), 51: ("content_mac", "bytes32", None), 52: ("user_pseudonym", "text", None),
    53: ("mapping_version", "uint", None), 54: ("sealed_tags", "bytes", None),
    64: ("seq", "uint", None), 65: ("topic_id", "bytes16", None), 66: ("partition", "uint31", None),
    67: ("offset", "uint", None), 68: ("key", "bytes16", None),
    70: ("cost", "int64", MONEY), 71: ("price_book", "hash", MONEY), 72: ("price_row", "text", MONEY),
    73: ("unpriced_reason", "text", MONEY), 74: ("pricing_version", "uint", MONEY),
    75: ("estimated_delta", "delta", CORRECTION), 76: ("token_deltas", "token_deltas", CORRECTION),
    77: ("corrects_seq", "uint", CORRECTION), 78: ("net_cost", "int64", CORRECTION), 79: ("unpriced_delta", "delta", CORRECTION),
    80: ("reject_reason", "text", REJECTED), 81: ("reject_field", "text", REJECTED),
    82: ("body_hash", "hash", REJECTED), 83: ("body_size", "uint", REJECTED), 84: ("gpu_us_delta", "delta", CORRECTION),
    90: ("control_kind", "text", CONTROL), 91: ("control_version", "text", CONTROL), 92: ("control_hash", "hash", CONTROL),
    100: ("edge_id", "text", COUNTERS), 101: ("edge_epoch", "uint", COUNTERS), 102: ("accepted", "uint", COUNTERS),
    103: ("refused", "uint", COUNTERS), 104: ("reasons", "reasons", COUNTERS),
}
MAX_BLOCK_BYTES = 16 << 20
GPU = ("gpu_us", "gpu_state", "purchase_option", "derived_from", "gpu_us_delta")  # fields that came with version 2
ALWAYS = ("topic_id", "key")  # written even when zero


def version_of(entry):
    """An entry has the lowest version that knows all its fields."""
    return 2 if any(name in entry for name in GPU) else 1


class Format(Exception):
    """The bytes are not a canonical entry."""


class Version(Exception):
    """The version or kind is not known."""


class Broken(Exception):
    def __init__(self, seq, reason, message):
        super().__init__(f"entry {seq}: {reason}: {message}")


class Unknown(Exception):
    """Part of the evidence cannot be had."""


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def u32(n):
    return n.to_bytes(4, "big")


def u64(n):
    return n.to_bytes(8, "big")


def genesis(tenant):
    return sha256(b"tallystick/genesis/v1\0", tenant.encode())


def leaf_of(canonical):
    return sha256(b"\0", canonical)


def chain_of(previous, leaf):
    return sha256(b"tallystick/chain/v1\0", previous, leaf)


def mac_of(key, epoch, seq, chain):
    return hmac.digest(key, b"tallystick/mac/v1\0" + u32(epoch) + u64(seq) + chain, "sha256")


def mac_key(root, tenant, epoch):
    """HKDF-SHA256 without salt, 32 bytes: one block of the expansion is enough."""
    secret = hmac.digest(bytes(32), root, "sha256")
    return hmac.digest(secret, b"tallystick/mac\0" + tenant.encode() + b"\0" + u32(epoch) + b"\x01", "sha256")


def leb128(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def read_leb128(b, at):
    n = shift = 0
    while True:
        if at >= len(b) or shift > 63:
            raise Format("a length is cut")
        c = b[at]
        at += 1
        n |= (c & 127) << shift
        if c < 128:
            break
        shift += 7
    if (c == 0 and shift > 0) or n >= 1 << 63:
        raise Format("a number is not in its shortest form, or too great")
    return n, at


def read_value(b, at):
    n, at = read_leb128(b, at)
    if at + n > len(b):
        raise Format("a value is cut")
    return b[at:at + n], at + n


def uint(v, most=(1 << 63) - 1):
    if not 1 <= len(v) <= 8 or v[0] == 0 or int.from_bytes(v, "big") > most:
        raise Format("not a number in its shortest form")
    return int.from_bytes(v, "big")


def minimal(n):
    return n.to_bytes((n.bit_length() + 7) // 8, "big")


def fixed(v, size):
    if len(v) != size:
        raise Format(f"{len(v)} bytes where {size} belong")
    return v


def nonzero(v, what):
    if not any(v):
        raise Format(f"{what} of zero is not written")
    return v


def pairs(v, second):
    """Pairs in strictly ascending order of their first member."""
    out, at, last = {}, 0, None
    while at < len(v):
        first, at = read_value(v, at)
        if last is not None and first <= last:
            raise Format("pairs are out of order")
        out[first], at = second(v, at)
        last = first
    return nonempty(out)


def nonempty(v):
    if not v:
        raise Format("an empty value is not written")
    return v


def delta(v):
    return int.from_bytes(nonzero(fixed(v, 8), "a difference"), "big", signed=True)


def tokens(v, number=uint):
    out, at, last = {}, 0, 0
    while at < len(v):
        cls = v[at]
        if not last < cls <= len(CLASSES):
            raise Format("classes of tokens are out of order or unknown")
        n, at = read_value(v, at + 1)
        out[CLASSES[cls - 1]] = number(n)
        last = cls
    return nonempty(out)


def flag(v):
    fixed(v, 0)
    return True


DECODE = {
    "text": nonempty, "bytes": nonempty, "uint": uint, "uint31": lambda v: uint(v, (1 << 31) - 1), "flag": flag,
    "time": lambda v: int.from_bytes(nonzero(fixed(v, 8), "a time"), "big", signed=True),
    "int64": lambda v: int.from_bytes(fixed(v, 8), "big", signed=True),
    "hash": lambda v: nonzero(fixed(v, 32), "a hash"), "bytes32": lambda v: fixed(v, 32), "bytes16": lambda v: fixed(v, 16),
    "delta": delta, "token_deltas": lambda v: tokens(v, delta), "tokens": tokens, "tags": lambda v: pairs(v, read_value), "reasons": lambda v: pairs(v, read_leb128),
}


def decode(b):
    """The fields of canonical bytes; raises Format or Version."""
    if len(b) < 2:
        raise Format("fewer than two bytes")
    if b[0] not in (1, 2) or b[1] not in KINDS:
        raise Version(f"version {b[0]}, kind {b[1]}")
    entry, at, last = {"kind": KINDS[b[1]]}, 2, -1
    while at < len(b):
        tag = b[at]
        v, at = read_value(b, at + 1)
        if tag <= last:
            raise Format(f"field {tag} after {last}")
        name, form, kinds = FIELDS.get(tag, (None, None, ()))
        if name is None or kinds is not None and entry["kind"] not in kinds:
            raise Format(f"field {tag} in a {entry['kind']}")
        entry[name] = DECODE[form](v)
        last = tag
    for name in ALWAYS:
        if name not in entry:
            raise Format(f"{name} is missing")
    if b[0] < version_of(entry):
        raise Format("fields of a later version")
    if b[0] > version_of(entry):
        raise Version(f"version {b[0]} without a field of it")
    return entry


ENCODE = {
    "text": lambda v: v, "bytes": lambda v: v, "uint": minimal, "uint31": minimal, "flag": lambda v: b"",
    "time": lambda v: v.to_bytes(8, "big", signed=True), "int64": lambda v: v.to_bytes(8, "big", signed=True),
    "hash": lambda v: v, "bytes32": lambda v: v, "bytes16": lambda v: v,
    "tokens": lambda v: b"".join(bytes([i + 1]) + leb128(len(minimal(v[c]))) + minimal(v[c]) for i, c in enumerate(CLASSES) if v.get(c)),
    "delta": lambda v: v.to_bytes(8, "big", signed=True),
    "token_deltas": lambda v: b"".join(bytes([i + 1, 8]) + v[c].to_bytes(8, "big", signed=True) for i, c in enumerate(CLASSES) if v.get(c)),
    "tags": lambda v: b"".join(leb128(len(k)) + k + leb128(len(v[k])) + v[k] for k in sorted(v)),
    "reasons": lambda v: b"".join(leb128(len(k)) + k + leb128(v[k]) for k in sorted(v)),
}


def encode(entry):
    """The canonical bytes of fields."""
    kind = next(k for k, name in KINDS.items() if name == entry["kind"])
    out = bytearray([version_of(entry), kind])
    for tag, (name, form, _) in sorted(FIELDS.items()):
        if name in entry:
            v = ENCODE[form](entry[name])
            out += bytes([tag]) + leb128(len(v)) + v
    return bytes(out)


class Checker:
    """Checks consecutive entries of one tenant."""

    def __init__(self, tenant, root, seq, chain, epoch):
        self.tenant, self.root, self.seq, self.chain, self.epoch, self.keys = tenant, root, seq, chain, epoch, {}
        self.good = lambda seq, entry, leaf: None  # told of every entry that is good

    def check(self, canonical, chain, mac, epoch):
        seq = self.seq
        computed = chain_of(self.chain, leaf_of(canonical))
        if computed != chain:
            raise Broken(seq, "hash", "the chain hash is not the one of the entry's bytes")
        try:
            entry = decode(canonical)
        except Format as e:
            raise Broken(seq, "hash", str(e)) from e
        except Version as e:
            raise Broken(seq, "unknown version", str(e)) from e
        if encode(entry) != canonical:
            raise Broken(seq, "hash", "the bytes are not the encoding of what they say")
        self.beside(entry, epoch)
        if self.root is not None and mac != mac_of(self.key(epoch), epoch, seq, chain):
            raise Broken(seq, "MAC", f"not that of key epoch {epoch}")
        self.seq, self.chain, self.epoch = seq + 1, chain, epoch
        self.good(seq, entry, leaf_of(canonical))

    def beside(self, entry, epoch):
        if entry.get("seq") != self.seq or entry.get("tenant_id") != self.tenant.encode():
            raise Broken(self.seq, "projected column differs", f"the entry is {entry.get('seq')} of {entry.get('tenant_id')}")
        if entry["kind"] == "correction" and not 0 < entry.get("corrects_seq", 0) < self.seq:
            raise Broken(self.seq, "correction", "it names no entry before it")
        want = self.epoch or 1
        if entry["kind"] == "control" and entry.get("control_kind") == b"key_epoch":
            want = int(entry["control_version"])
        if epoch != want:
            raise Broken(self.seq, "projected column differs", f"key epoch {epoch}, not {want}")

    def key(self, epoch):
        if epoch not in self.keys:
            self.keys[epoch] = mac_key(self.root, self.tenant, epoch)
        return self.keys[epoch]


def read_exactly(f, n, seq):
    b = f.read(n)
    if len(b) != n:
        raise Broken(seq, "truncated", "the file ends in the middle")
    return b


def verify_export(path, root):
    """Checks an export and returns its header."""
    with open(path, "rb") as f:
        return verify_export_file(f, root, None)


def verify_export_file(f, root, good):
    """Checks an open export; good, if any, is told of every entry."""
    if f.readline(64) != b"tallystick ledger export 1\n":
        raise ValueError("not a ledger export of version 1")
    header = json.loads(f.readline(64 << 10))
    first, last = header["from_seq"], header["to_seq"]
    if first == 1:
        c = Checker(header["tenant"], root, 1, genesis(header["tenant"]), 0)
    elif len(header["anchor_chain"]) == 64 and header["anchor_epoch"] > 0:
        c = Checker(header["tenant"], root, first, bytes.fromhex(header["anchor_chain"]), header["anchor_epoch"])
    else:
        raise Broken(first - 1, "missing anchor", "the export does not say what its first entry follows")
    if good:
        c.good = good
    while read_block(f, c):
        pass
    if c.seq != last + 1:
        raise Broken(c.seq, "truncated", f"the export should go on to {last}")
    if last == header["head_seq"] and c.chain.hex() != header["head_chain"]:
        raise Broken(last, "hash", "the head has another chain hash")
    if f.read(1):
        raise Broken(c.seq, "duplicate", "bytes follow the export's end")
    return header


def read_block(f, c):
    h = read_exactly(f, 16, c.seq)
    size, first, count = int.from_bytes(h[:4], "big"), int.from_bytes(h[4:12], "big"), int.from_bytes(h[12:], "big")
    if first != c.seq:
        raise Broken(min(first, c.seq), "gap" if first > c.seq else "duplicate", f"a block begins with {first}")
    if size == 0 and count == 0:
        return False
    if size > MAX_BLOCK_BYTES:
        raise Broken(c.seq, "hash", f"a block of {size} bytes")
    b, at = read_exactly(f, size, c.seq), 0
    for _ in range(count):
        try:
            canonical, at = read_value(b, at)
        except Format as e:
            raise Broken(c.seq, "hash", str(e)) from e
        tail = b[at:at + 68]
        if len(tail) != 68:
            raise Broken(c.seq, "hash", "the entry does not fit its block")
        at += 68
        c.check(canonical, tail[:32], tail[32:64], int.from_bytes(tail[64:], "big"))
    if at != len(b):
        raise Broken(c.seq, "hash", "bytes after the last entry of a block")
    return True


FORMS = {name: form for name, form, _ in FIELDS.values()}


def parse_fields(text):
    """The fields of a vector."""
    entry = {"topic_id": bytes(16), "key": bytes(16)}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        name, _, member = name.partition(".")
        form = FORMS.get(name)
        if name == "kind":
            entry["kind"] = value
        elif form == "text":
            entry[name] = value.encode()
        elif form in ("uint", "uint31", "time", "int64", "delta"):
            entry[name] = int(value)
        elif form == "flag":
            entry[name] = True
        elif form in ("tokens", "token_deltas"):
            entry.setdefault(name, {})[member] = int(value)
        elif form == "tags":
            entry.setdefault(name, {})[member.encode()] = value.encode()
        elif form == "reasons":
            entry.setdefault(name, {})[member.encode()] = int(value)
        else:
            entry[name] = bytes.fromhex(value)
    return entry


def expect(where, what, got, want):
    if got != want:
        raise Broken(where, "vector", f"{what} is {got}, should be {want}")


def verify_chain_vectors(path):
    blocks = open(path, encoding="utf-8").read().split("====\n")[:-1]
    header = dict(line.split(" ", 1) for line in blocks[0].splitlines())
    tenant, root = header["tenant"], bytes.fromhex(header["integrity_root"])
    expect(0, "genesis", genesis(tenant).hex(), header["genesis"])
    for epoch in (1, 2):
        expect(0, f"MAC key {epoch}", mac_key(root, tenant, epoch).hex(), header[f"mac_key.{epoch}"])
    c = Checker(tenant, root, 1, genesis(tenant), 0)
    for block in blocks[1:]:
        fields, _, results = block.partition("----\n")
        entry, want = parse_fields(fields), dict(line.split(" ", 1) for line in results.splitlines())
        canonical = bytes.fromhex(want["canonical"])
        expect(c.seq, "canonical", encode(entry).hex(), want["canonical"])
        expect(c.seq, "decoded", decode(canonical), entry)
        expect(c.seq, "leaf", leaf_of(canonical).hex(), want["leaf"])
        c.check(canonical, bytes.fromhex(want["chain"]), bytes.fromhex(want["mac"]), int(want["key_epoch"]))
    return c.seq - 1


def verify_invalid_vectors(path):
    n = 0
    for line in open(path, encoding="utf-8"):
        if not line.strip() or line.startswith("#"):
            continue
        what, text = line.split()
        try:
            decode(bytes.fromhex(text))
            got = "canonical"
        except Format:
            got = "format"
        except Version:
            got = "version"
        expect(n, line.strip(), got, "version" if what == "version" else "format")
        n += 1
    return n


def verify_vectors(folder):
    names = sorted(n for n in os.listdir(folder) if n.startswith("chain-") and n.endswith(".txt"))
    if not names:
        raise Unknown(f"no vectors in {folder}")
    good = sum(verify_chain_vectors(os.path.join(folder, n)) for n in names)
    bad = verify_invalid_vectors(os.path.join(folder, "invalid.txt"))
    if not good or not bad:
        raise Unknown(f"no vectors in {folder}")
    print(f"vectors: {good} entries of {len(names)} chains, {bad} refusals: ok")


# Ed25519 (RFC 8032, section 6), verification only.
P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)


def add_points(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def multiply(n, p):
    q = (0, 1, 1, 0)
    while n:
        if n & 1:
            q = add_points(q, p)
        p, n = add_points(p, p), n >> 1
    return q


def point(b):
    y = int.from_bytes(b, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        return None
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * ROOT % P
    if (x * x - x2) % P or not x and sign:
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


BASE = point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def ed25519_verifies(key, message, signature):
    a, r, s = point(key), point(signature[:32]), int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or a is None or r is None or s >= ORDER:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % ORDER
    p, q = multiply(s, BASE), add_points(r, multiply(h, a))
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0


def parse_keys(text):
    """Verifier keys, one a line: {(name, id): public key}."""
    keys = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, key_id, key = line.strip().split("+", 2)
            raw = base64.b64decode(key, validate=True)
            if len(raw) != 33 or raw[0] != 1 or sha256(name.encode(), b"\n", raw)[:4].hex() != key_id:
                raise ValueError(f"not a verifier key: {line}")
            keys[name, bytes.fromhex(key_id)] = raw[1:]
    return keys


def open_note(note, keys):
    """The text of a signed note and the keys that signed it; every known signature must verify."""
    text, found, lines = note.rpartition(b"\n\n")
    text, signed = text + b"\n", {}
    for line in lines.decode().splitlines():
        dash, name, value = line.split(" ")
        raw = base64.b64decode(value, validate=True)
        key = keys.get((name, raw[:4]))
        if dash != "\u2014" or not found:
            raise Broken(0, "checkpoint signature", "not a signed note")
        if key is not None:
            if not ed25519_verifies(key, text, raw[4:]):
                raise Broken(0, "checkpoint signature", f"that of {name} does not verify")
            signed[name, raw[:4]] = key
    return text.decode().split("\n")[:-1], signed


class Tree:
    """The tree of RFC 6962, grown from its left edge."""

    def __init__(self, size, edge):
        levels = [i for i in reversed(range(size.bit_length())) if size >> i & 1]
        if len(levels) != len(edge):
            raise Broken(size + 1, "missing anchor", "the left edge is of another size")
        self.size, self.nodes, self.roots, self.wanted = size, list(zip(levels, edge)), {}, set()
        self.remember()

    def add(self, leaf):
        level, self.size = 0, self.size + 1
        while self.nodes and self.nodes[-1][0] == level:
            leaf, level = sha256(b"\1", self.nodes.pop()[1], leaf), level + 1
        self.nodes.append((level, leaf))
        self.remember()

    def remember(self):
        if self.size in self.wanted:
            self.roots[self.size] = self.root()

    def root(self):
        if not self.nodes:
            return sha256(b"")
        h = self.nodes[-1][1]
        for _, left in reversed(self.nodes[:-1]):
            h = sha256(b"\1", left, h)
        return h


def consistent(first, second, first_root, second_root, path):
    """RFC 9162, section 2.1.4.2."""
    if first == second:
        return first_root == second_root and not path
    if first & first - 1 == 0:
        path = [first_root] + path
    if not path:
        return False
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = sha256(b"\1", c, fr), sha256(b"\1", c, sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = sha256(b"\1", sr, c)
        fn, sn = fn >> 1, sn >> 1
    return fr == first_root and sr == second_root and sn == 0


class Evidence:
    """An evidence package."""

    def __init__(self, archive, trusted, root):
        self.zip, self.root = archive, root
        names = [i.filename for i in archive.infolist()]
        if len(set(names)) != len(names) or any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
            raise Broken(0, "archive", "a name stands twice, or a member is compressed")
        self.manifest = json.loads(self.small("manifest.json"))
        if self.manifest["format"] != "tallystick evidence 1":
            raise Unknown("a package of another version")
        self.tenant, self.first, self.last = (self.manifest[k] for k in ("tenant", "from_seq", "to_seq"))
        self.keys = {k: v for k, v in trusted.items() if k[0].endswith("/ledger/" + self.tenant)}
        if not self.keys:
            raise Unknown(f"no trusted key is of the ledger of {self.tenant}")
        self.cost, self.entries, self.unpriced = 0, 0, 0

    def small(self, name):
        if self.zip.getinfo(name).file_size > 8 << 20:
            raise Broken(0, "archive", f"{name} is too large")
        return self.zip.read(name)

    def verify(self):
        for f in self.manifest["files"]:
            digest = hashlib.sha256()
            with self.zip.open(f["name"]) as member:
                for chunk in iter(lambda: member.read(1 << 20), b""):
                    digest.update(chunk)
            if digest.hexdigest() != f["sha256"]:
                raise Broken(0, "manifest", f"{f['name']} is not the file that it lists")
        checkpoints = self.checkpoints()
        proofs = json.loads(self.small("proofs.json"))["ledger"]
        self.tree = Tree(self.first - 1, [bytes.fromhex(h) for h in proofs["left_edge"]])
        self.tree.wanted = {*checkpoints, self.last}
        self.tree.remember()
        with self.zip.open("entries.tsx") as f:
            header = verify_export_file(f, self.root, self.add)
        if (header["tenant"], header["from_seq"], header["to_seq"]) != (self.tenant, self.first, self.last):
            raise Broken(0, "manifest", "the entries are of another range")
        self.compare(checkpoints, proofs)
        totals = self.manifest["totals"]
        cost = f"{'-' if self.cost < 0 else ''}{abs(self.cost) // 10**12}.{abs(self.cost) % 10**12:012d}"
        said = (totals["entries"], totals["unpriced"], totals["money"][0]["cost"])
        if said != (self.entries, self.unpriced, cost):
            raise Broken(0, "manifest", f"its sums are {said}, the entries come to {self.entries}, {self.unpriced}, {cost}")
        return cost

    def add(self, seq, entry, leaf):
        self.tree.add(leaf)
        self.entries += 1
        self.cost += entry.get("cost", 0)
        self.unpriced += entry["kind"] == "usage" and "cost" not in entry

    def checkpoints(self):
        """The roots that are signed, by size."""
        names = sorted(n for n in self.zip.namelist() if n.startswith("checkpoints/ledger/"))
        held, roots = self.keys, {}
        for name in (n for n in names if "/key-" in n):
            text, signed = open_note(self.small(name), held)
            if signed and text[0] == "tallystick signing key 1":
                held = parse_keys(text[3])
                self.keys = {**self.keys, **held}
        for name in (n for n in names if "/key-" not in n):
            size = int(name.rpartition("/")[2])
            text, signed = open_note(self.small(name), self.keys)
            if int(text[1]) != size or not any(text[0] == key[0] for key in signed):
                raise Broken(size, "checkpoint signature", "not signed by a trusted key")
            roots[size] = base64.b64decode(text[2], validate=True)
        return roots

    def compare(self, checkpoints, proofs):
        good, cover = self.first - 1, self.manifest["checkpoint"]["size"]
        for size in sorted(checkpoints):
            if size in self.tree.roots:
                if self.tree.roots[size] != checkpoints[size]:
                    raise Broken(good + 1, "root differs", f"not what the checkpoint of size {size} commits to")
                good = size
        if cover not in checkpoints or cover < self.last:
            raise Unknown("no checkpoint covers the range")
        if cover == self.last:
            return
        for p in proofs["consistency"]:
            if (p["from"], p["to"]) == (self.last, cover):
                path = [bytes.fromhex(h) for h in p["hashes"]]
                if not consistent(self.last, cover, self.tree.roots[self.last], checkpoints[cover], path):
                    raise Broken(good + 1, "consistency", f"the checkpoint of size {cover} is not of the tree of these entries")
                return
        raise Unknown(f"no proof ties the entries to the checkpoint of size {cover}")


def verify_evidence(path, keys, root):
    try:
        with zipfile.ZipFile(path) as archive, open(keys, encoding="utf-8") as trusted:
            e = Evidence(archive, parse_keys(trusted.read()), root)
            return e.manifest, e.verify()
    except zipfile.BadZipFile as e:
        raise Unknown(f"the archive is cut or damaged: {e}") from e


def verify_evidence_vectors(folder):
    keys = os.path.join(folder, "keys.txt")
    for name in ("whole.zip", "range.zip", "day.zip"):
        verify_evidence(os.path.join(folder, name), keys, None)
    try:
        verify_evidence(os.path.join(folder, "forged.zip"), keys, None)
    except Broken as e:
        expect(0, "forged.zip", str(e).split(": not")[0], "entry 41: root differs")
    else:
        raise Broken(0, "vector", "forged.zip is called intact")
    print("evidence: 3 packages intact, 1 refused: ok")


def main():
    parser = argparse.ArgumentParser(description="Verify Tallystick ledgers.")
    parser.add_argument("--vectors", metavar="FOLDER")
    parser.add_argument("--export", metavar="FILE")
    parser.add_argument("--evidence", metavar="FILE")
    parser.add_argument("--evidence-vectors", metavar="FOLDER")
    parser.add_argument("--key", metavar="FILE", help="public keys that you trust, one a line")
    parser.add_argument("--integrity-root", metavar="FILE")
    args = parser.parse_args()
    if sum(map(bool, (args.vectors, args.export, args.evidence, args.evidence_vectors))) != 1:
        parser.error("one of --vectors, --export, --evidence and --evidence-vectors")
    if args.evidence and not args.key:
        parser.error("--evidence needs --key")
    try:
        root = None
        if args.integrity_root:
            root = fixed(bytes.fromhex(open(args.integrity_root, encoding="ascii").read().strip()), 32)
        if args.vectors:
            verify_vectors(args.vectors)
        elif args.evidence_vectors:
            verify_evidence_vectors(args.evidence_vectors)
        elif args.evidence:
            m, cost = verify_evidence(args.evidence, args.key, root)
            print(f"{m['tenant']}: entries {m['from_seq']} to {m['to_seq']} intact, under the checkpoint of size"
                  f" {m['checkpoint']['size']}, USD {cost}, MACs {'checked' if root else 'not checked'}")
        else:
            h = verify_export(args.export, root)
            macs = "checked" if root else "not checked"
            print(f"{h['tenant']}: entries {h['from_seq']} to {h['to_seq']} intact, head {h['head_seq']} {h['head_chain']}, MACs {macs}")
    except Broken as e:
        print(f"broken: {e}", file=sys.stderr)
        return 3
    except (Unknown, OSError, ValueError, KeyError, Format) as e:
        print(f"cannot tell: {e}", file=sys.stderr)
        return 8
    return 0


if __name__ == "__main__":
    sys.exit(main())
