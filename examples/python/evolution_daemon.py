#!/usr/bin/env python3
"""Evolution Daemon V7: evolves tensors of a model that is loaded in a vbootfs mount.

Everything goes through files: a population is copies of a base model in
geometry_os_v7/output/population/, a mutation is a draft, its fitness comes from
the runtime that is attached to the model, and from NumPy when there is none.

    vbootfs none /mnt/models
    cp model.gguf /mnt/models/geometry_os_v7/output/
    python3 evolution_daemon.py --mount /mnt/models --model model.gguf --svg fitness.svg

Fitness is how well the model's first and last layer alone predict a text: the
mean log-probability of each byte's token, given the one before,

    log softmax(output.weight @ (rms_norm(token_embd.weight[before]) * output_norm.weight))

How a runtime answers (examples/rust/vector_boot does):
    1. It opens models/P/session, which attaches it.
    2. It reads "N interrupt 0xff", evaluates the text in output/fitness/text,
    3. writes {"generation": G, "fitness": F} to output/fitness/P.json (P without .gguf),
    4. and then "ack N" to the session.
G is the generation that it read; an answer for another one is not used.
"""
import argparse
import errno
import json
import math
import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are small
import numpy as np

TEXT = "The brain changes the model, the body answers, and what predicts better stays."
EVOLVED = ["output_norm.weight", "output.weight"]
FIXED = "token_embd.weight"
EVALUATE = "0xFF"  # the opcode of the interrupt


class Model:
    """A loaded model: the directory vector_boot/models/P."""

    def __init__(self, mount, path):
        self.path = path
        self.file = os.path.join(mount, "geometry_os_v7/output", path)
        self.dir = os.path.join(mount, "vector_boot/models", path)

    def text(self, name):
        with open(os.path.join(self.dir, name)) as f:
            return f.read().strip()

    def generation(self):
        return int(self.text("generation"))

    def sessions(self):
        return set(os.listdir(os.path.join(self.dir, "sessions")))

    def stored(self, name):
        """The file of a tensor's values, their type and shape. Types that NumPy does not have go through f32."""
        info = json.loads(self.text(f"tensors/{name}/info.json"))
        dtype = info["numpy_dtype"]
        return ("data", dtype, info["shape"]) if dtype else ("f32", "<f4", info["shape"])

    def tensor(self, name):
        file, dtype, shape = self.stored(name)
        return np.fromfile(os.path.join(self.dir, "tensors", name, file), dtype).reshape(shape).astype(np.float32)

    def max_change(self):
        """How far a guard lets a value move, as a part of the largest one; 0: any."""
        for line in self.text("policy").splitlines():
            if line.startswith("max_change "):
                return float(line.split()[1])
        return 0.0

    def command(self, name, line):
        """Writes one command to a ctl file. Why it failed is what the file reads then."""
        fd = os.open(os.path.join(self.dir, name), os.O_RDWR)
        try:
            os.write(fd, line.encode())
        except OSError as e:
            reason = os.pread(fd, 1000, 0).decode(errors="replace").strip()
            raise OSError(e.errno, reason) from e
        finally:
            os.close(fd)

    def commit(self, tensors):
        """Changes tensors, all or none, through a draft."""
        draft = os.path.join(self.dir, "drafts/evolution")
        if os.path.isdir(draft):  # of a daemon that died in it
            os.rmdir(draft)
        os.mkdir(draft)
        try:
            for name, values in tensors.items():
                file, dtype, _ = self.stored(name)
                with open(f"{draft}/tensors/{name}/{file}", "wb", buffering=0) as f:
                    write_all(f, values.astype(dtype).tobytes())
            self.command("drafts/evolution/ctl", "commit")
        finally:
            os.rmdir(draft)  # empty after a commit; otherwise this aborts it


def write_all(f, data):
    view = memoryview(data)
    while view:
        view = view[f.write(view):]


def fork(source, target):
    """Copies a model inside the mount, where the kernel does not move the bytes."""
    with open(source, "rb") as a, open(target, "wb") as b:
        while os.copy_file_range(a.fileno(), b.fileno(), 1 << 30):
            pass


class Member:
    """One of the population: a model, its evolved tensors, and how fit they are."""

    def __init__(self, model):
        self.model = model
        self.genome = {name: model.tensor(name) for name in EVOLVED}
        self.fitness = -math.inf


class EvolutionDaemonV7:
    def __init__(self, mount, model, population=12, seed=1, sigma=0.1, timeout=2.0):
        self.mount, self.size, self.timeout = mount, population, timeout
        self.random = np.random.default_rng(seed)
        self.sigma = sigma  # step of a mutation, in root mean squares of its tensor
        self.base = Model(mount, model)
        self.members = []
        self.by = {"runtime": 0, "numpy": 0}  # evaluations
        self.refused = 0
        self.hung = set()  # sessions that did not answer in time
        self.history = []  # (best, mean)

    def connect(self):
        with open(os.path.join(self.mount, "vector_boot/version")) as f:
            version = f.read().strip()
        if self.base.text("state") != "loaded":
            raise RuntimeError(f"{self.base.path} is {self.base.text('state')}")
        tokens = len(self.base.tensor(FIXED))
        self.ids = np.array([(3 + b) % tokens for b in TEXT.encode()])  # 3: <unk>, <s> and </s> come first
        embedded = self.base.tensor(FIXED)[self.ids[:-1]]
        self.inputs = embedded / np.sqrt((embedded**2).mean(axis=1, keepdims=True) + 1e-5)
        self.answers = os.path.join(self.mount, "geometry_os_v7/output/fitness")
        os.makedirs(self.answers, exist_ok=True)
        with open(os.path.join(self.answers, "text"), "w") as f:
            f.write(TEXT)
        return version

    def stats(self):
        with open(os.path.join(self.mount, "vector_boot/stats.json")) as f:
            return json.load(f)

    def breed(self):
        """Makes the population: the base model, and mutated copies of it."""
        os.makedirs(os.path.join(self.mount, "geometry_os_v7/output/population"), exist_ok=True)
        for i in range(self.size):
            m = Model(self.mount, f"population/{i:03}.gguf")
            fork(self.base.file, m.file)
            self.members.append(Member(m))
        for m in self.members[1:]:
            self.change(m, self.mutate(m.genome))
        for m in self.members:
            self.evaluate(m)

    def mutate(self, genome):
        return {name: self.noise(v) for name, v in genome.items()}

    def noise(self, v):
        return v + self.random.normal(0, self.sigma * np.sqrt((v**2).mean()), v.shape)

    def crossover(self, a, b):
        """Takes each value from one of two parents."""
        return {name: np.where(self.random.random(a[name].shape) < 0.5, a[name], b[name]) for name in a}

    def guard(self, member, genome):
        """Keeps a change within the policy of the model, and finite."""
        part = member.model.max_change() * 0.99  # rounding to the stored type comes on top
        out = {}
        for name, v in genome.items():
            old = member.genome[name]
            v = np.where(np.isfinite(v), v, old)
            if part:
                limit = part * np.abs(old).max()
                v = np.clip(v, old - limit, old + limit)
            out[name] = v
        return out

    def change(self, member, genome):
        """Commits a genome. A refusal or a conflict leaves the member as it was."""
        try:
            member.model.commit(self.guard(member, genome))
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.EBUSY):
                raise
            self.refused += 1
            print(f"refused: {e.strerror}", file=sys.stderr)
        member.genome = {name: member.model.tensor(name) for name in genome}  # as it is stored

    def evaluate(self, member):
        fitness = self.ask(member.model)
        self.by["numpy" if fitness is None else "runtime"] += 1
        member.fitness = self.own_fitness(member.genome) if fitness is None else fitness

    def ask(self, model):
        """The fitness that an attached runtime finds; None if there is none, or it dies or hangs."""
        attached = model.sessions() - self.hung
        if not attached:
            return None
        try:
            model.command("ctl", f"interrupt {EVALUATE} timeout={self.timeout}s")
        except OSError as e:
            if e.errno not in (errno.ETIMEDOUT, errno.EAGAIN):
                raise
            self.hung |= attached
            print(f"{model.path}: {e.strerror}", file=sys.stderr)
        try:
            with open(os.path.join(self.answers, model.path.removesuffix(".gguf") + ".json")) as f:
                answer = json.load(f)
        except (FileNotFoundError, json.JSONDecodeError):
            return None  # it died before it had written one
        if answer["generation"] != model.generation():
            return None  # an old one
        return answer["fitness"] if math.isfinite(answer["fitness"]) else -math.inf

    def own_fitness(self, genome):
        z = (self.inputs * genome["output_norm.weight"]) @ genome["output.weight"].T
        z = z.astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        right = z[np.arange(len(z)), self.ids[1:]]
        return float((right - np.log(np.exp(z).sum(axis=1))).mean())

    def generation(self):
        """The fittest quarter stays; the others become its children."""
        self.members.sort(key=lambda m: -m.fitness)
        parents = self.members[:max(1, self.size // 4)]
        before = parents[0].fitness
        for m in self.members[len(parents):]:
            a, b = (parents[i] for i in self.random.integers(len(parents), size=2))
            self.change(m, self.mutate(self.crossover(a.genome, b.genome)))
            self.evaluate(m)
        best = max(m.fitness for m in self.members)
        self.sigma *= 1.1 if best > before else 0.9
        self.history.append((best, sum(m.fitness for m in self.members) / self.size))

    def best(self):
        return max(self.members, key=lambda m: m.fitness)


def svg(history, name):
    """Draws the best and the mean fitness over the generations."""
    width, height, left, top, right, bottom = 640, 360, 70, 40, 20, 50
    low, high = min(min(h) for h in history), max(max(h) for h in history)
    span = high - low or 1.0

    def x(i):
        return left + (width - left - right) * i / max(1, len(history) - 1)

    def y(v):
        return top + (height - top - bottom) * (high - v) / span

    def line(k, colour):
        points = " ".join(f"{x(i):.1f},{y(h[k]):.1f}" for i, h in enumerate(history))
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'

    def text(px, py, s, anchor="middle"):
        return f'<text x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}">{s}</text>'

    def grid(v):
        return f'<path stroke="#ddd" d="M{left} {y(v):.1f}H{width - right}"/>' + text(left - 8, y(v) + 4, f"{v:.2f}", "end")

    last = len(history) - 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(width / 2, 22, "fitness: mean log-probability of the next byte"),
        *(grid(low + span * k / 4) for k in range(5)),
        *(text(x(i), height - bottom + 18, str(i)) for i in sorted({0, last // 2, last})),
        text(width / 2, height - 12, "generation"),
        line(1, "#999"), line(0, "#06c"),
        text(x(last), y(history[-1][0]) - 6, "best", "end"),
        text(x(last), y(history[-1][1]) + 16, "mean", "end"),
        "</svg>\n",
    ]
    with open(name, "w") as f:
        f.write("\n".join(parts))


def main():
    p = argparse.ArgumentParser(description="Evolves tensors of a model in a vbootfs mount.")
    p.add_argument("--mount", required=True, help="where vbootfs is mounted")
    p.add_argument("--model", required=True, help="the base model, relative to geometry_os_v7/output")
    p.add_argument("--generations", type=int, default=50)
    p.add_argument("--population", type=int, default=12)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--timeout", type=float, default=2.0, help="seconds that a runtime may take to answer")
    p.add_argument("--svg", help="draw the fitness into this file")
    p.add_argument("--step", action="store_true", help="wait for a line of input before each generation")
    a = p.parse_args()

    d = EvolutionDaemonV7(a.mount, a.model, a.population, a.seed, timeout=a.timeout)
    print("connected to", d.connect(), flush=True)
    commits = d.stats()["commits"]
    d.breed()
    first = d.members[0].fitness  # the base model's
    print(f"base: fitness {first:.6f}", flush=True)
    for n in range(1, a.generations + 1):
        if a.step and not sys.stdin.readline():
            break
        d.by = dict.fromkeys(d.by, 0)
        d.generation()
        by = " ".join(f"{k} {v}" for k, v in d.by.items() if v)
        print(f"generation {n}: best {d.history[-1][0]:.6f} mean {d.history[-1][1]:.6f} by {by}", flush=True)
    b = d.best()
    print(f"best: {b.model.path} fitness {b.fitness:.6f}, {b.fitness - first:+.6f}; "
          f"{d.stats()['commits'] - commits} commits, {d.refused} refused")
    if a.svg:
        svg([(first, first)] + d.history, a.svg)


if __name__ == "__main__":
    main()
