# Tests of SQLite in the current directory.
program='
import os, random, signal, sqlite3, sys
mode = sys.argv[1]
def connect():
    c = sqlite3.connect("db", timeout=300, isolation_level=None)
    if c.execute(f"pragma journal_mode={mode}").fetchone()[0] != mode: sys.exit("journal mode not taken")
    c.execute("pragma synchronous=FULL")
    return c
c = connect()
c.execute("create table t (who, n, sum, body)")
c.execute("create index i on t (body)")
c.close()
def work(who, end):
    c, r = connect(), random.Random(who)
    for n in range(end):
        c.execute("begin immediate")
        for k in range(10):
            body = r.randbytes(r.randrange(3000)).hex()
            c.execute("insert into t values (?, ?, ?, ?)", (who, n, len(body), body))
        if n % 5 == 4: c.execute("delete from t where who = ? and n = ?", (who, n - 3))
        c.execute("commit")
        if who == 3 and n == end // 2: # dies in the middle of a transaction
            c.execute("begin immediate")
            c.execute("insert into t values (9, 9, 9, zeroblob(3000000))")
            os.kill(os.getpid(), signal.SIGKILL)
    c.close()
    os._exit(0)
N = 20
kids = [os.fork() or work(w, N) for w in range(4)]
status = [os.waitpid(k, 0)[1] for k in kids]
assert status == [0, 0, 0, signal.SIGKILL], status
c = connect()
assert c.execute("pragma integrity_check").fetchall() == [("ok",)]
assert c.execute("select count(*) from t where sum <> length(body) or who = 9").fetchone() == (0,)
want = sum(10 * (n - n // 5) for n in (N, N, N, N // 2 + 1))
assert c.execute("select count(*) from t").fetchone() == (want,), (c.execute("select count(*) from t").fetchone(), want)
c.execute("vacuum")
assert c.execute("pragma integrity_check").fetchall() == [("ok",)]
'

t_delete() { python3 -c "$program" delete; }
t_truncate() { python3 -c "$program" truncate; }
t_wal() { python3 -c "$program" wal; }
