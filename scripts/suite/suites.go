package main

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// suite is a program or a group of programs that test a directory.
type suite struct {
	name, what string
	run        func(r *run, dir string) (result, error)
}

var suites = []suite{
	{"posixtest", "go-fuse's contract tests", posixtest},
	{"pjdfstest", "system calls, errors and times, as several users", pjdfstest},
	{"fsx", "random reads, writes, mappings, holes, copies: 4 seeds, 10,000 operations each", fsx},
	{"fio", "writes with checksums, read back: 6 jobs", fio},
	{"stress-ng", "stressors of files and directories, two processes each", stress},
	{"dbench", "the calls of a file server, 4 clients", dbench},
	{"git", "commit, clone, repack, fsck, worktree", script(gitScript)},
	{"SQLite", "4 processes, journals DELETE, TRUNCATE and WAL, one process killed; integrity_check", script(sqliteScript)},
	{"copies", "rsync, tar and cp there and back, links, modes, times, attributes, checksums", script(copiesScript)},
}

// output runs a program in a directory. That it fails is no error here.
func (r *run) output(dir, name string, args ...string) (string, int, error) {
	cmd := exec.CommandContext(r.ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+r.dirs.Disk, "TMPDIR="+r.dirs.Disk)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", -1, fmt.Errorf("%s: %w", name, err)
	}
	return string(out), cmd.ProcessState.ExitCode(), nil
}

// lines reads results: the first group is the name, the second the verdict.
func lines(out string, line *regexp.Regexp) (res result) {
	for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); {
		m := line.FindStringSubmatch(s.Text())
		switch {
		case m == nil:
		case strings.EqualFold(m[2], "skip") || m[2] == "skipped":
			res.skipped++
		case m[2] == "ok" || m[2] == "PASS":
			res.passed++
		default:
			res.fail(m[1], m[2])
		}
	}
	return res
}

// posixLine has the name last.
var posixLine = regexp.MustCompile(`(?m)^ +--- (PASS|FAIL|SKIP): TestAll/(\S+)`)

func posixtest(r *run, dir string) (result, error) {
	out, code, err := r.output(dir, filepath.Join(r.programs, "posixtest"), "-test.v", "-posixdir", dir)
	if err != nil {
		return result{}, err
	}
	res := lines(posixLine.ReplaceAllString(out, "$2 $1"), regexp.MustCompile(`^(\w+) (PASS|FAIL|SKIP)`))
	return res, exitIs(res, code, out)
}

// exitIs makes sure that a suite which failed said what failed.
func exitIs(res result, code int, out string) error {
	if code != 0 && len(res.failed) == 0 || res.passed == 0 {
		return fmt.Errorf("exit code %d: %s", code, lastLine(out))
	}
	return nil
}

func lastLine(out string) string {
	all := strings.Split(strings.TrimSpace(out), "\n")
	return all[len(all)-1]
}

// The two users are there on every Debian.
const pjdConfig = `
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["games", "games"]]
`

func pjdfstest(r *run, dir string) (result, error) {
	config := filepath.Join(r.dirs.Disk, "pjdfstest.toml")
	if err := os.WriteFile(config, []byte(pjdConfig), 0o644); err != nil {
		return result{}, err
	}
	second := filepath.Join(r.dirs.Shm, "second") // another file system, for EXDEV
	if err := os.MkdirAll(second, 0o755); err != nil {
		return result{}, err
	}
	short := filepath.Join("/tmp", filepath.Base(r.dirs.Disk)+".d") // a socket's path has 107 bytes
	if err := os.Symlink(dir, short); err != nil {
		return result{}, err
	}
	out, code, err := r.output(dir, "pjdfstest", "-c", config, "-p", short, "-s", second)
	if err = errors.Join(err, os.Remove(short)); err != nil {
		return result{}, err
	}
	res := lines(out, regexp.MustCompile(`^(\S+::\S+)\s+(ok|FAILED|skipped)`))
	return res, exitIs(res, code, out)
}

const fsxConfig = `
flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 3
fsync = 0.1
fdatasync = 0.1
posix_fallocate = 1
punch_hole = 1
sendfile = 2
posix_fadvise = 1
copy_file_range = 2
`

func fsx(r *run, dir string) (res result, err error) {
	config := filepath.Join(r.dirs.Disk, "fsx.toml")
	if err := os.WriteFile(config, []byte(fsxConfig), 0o644); err != nil {
		return res, err
	}
	for seed := 1; seed <= 4; seed++ {
		s := strconv.Itoa(seed)
		err = errors.Join(err, r.one(&res, "seed "+s, dir, "fsx", "-f", config, "-S", s, "-N", "10000", "-P", r.dirs.Disk, filepath.Join(dir, "fsx"+s)))
	}
	return res, err
}

// one runs a program that is a test by itself.
func (r *run) one(res *result, name, dir, program string, args ...string) error {
	out, code, err := r.output(dir, program, args...)
	switch {
	case err != nil:
		return err
	case code != 0:
		res.fail(name, fmt.Sprintf("exit code %d: %s", code, lastLine(out)))
	default:
		res.passed++
	}
	return nil
}

func fio(r *run, dir string) (res result, err error) {
	for name, job := range map[string]string{
		"sequential":   "--rw=write --bs=128k",
		"random":       "--rw=randwrite --bs=4k",
		"two sizes":    "--rw=randwrite --bsrange=512-256k --blockalign=512",
		"mapped":       "--rw=randwrite --bs=4k --ioengine=mmap",
		"fsync":        "--rw=randwrite --bs=64k --fsync=16 --size=8M",
		"four at once": "--rw=randwrite --bs=16k --numjobs=4 --size=8M",
	} {
		args := append([]string{"--name=j", "--directory=" + dir, "--size=32M", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randseed=7"}, strings.Fields(job)...)
		err = errors.Join(err, r.one(&res, name, dir, "fio", args...))
	}
	return res, err
}

// stressors of stress-ng that work in a directory. Left out: io, which syncs the
// whole machine, fanotify, which works on all mounts, and what works on devices or /proc.
const stressors = `access aio chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup
	fallocate fcntl file-ioctl filename flock fpunch fsize fstat getdent handle hdd inode-flags
	inotify iomix ioprio lease link locka lockf lockofd mknod mmap msync open readahead rename revio
	seek sendfile splice symlink sync-file touch utime xattr`

var stressSaid = regexp.MustCompile(`(?m)^stress-ng: (?:fail|error|warn): +\[\d+\] (.*)$|^.*(skipp.*)$`)

func stress(r *run, dir string) (res result, err error) {
	for _, name := range strings.Fields(stressors) {
		out, code, err := r.output(dir, "stress-ng", "--"+name, "2", "--timeout", strconv.Itoa(r.seconds), "--verify", "--no-rand-seed", "--temp-path", dir)
		said := stressSaid.FindString(out)
		switch {
		case err != nil:
			return res, err
		case code != 0:
			res.fail(name, fmt.Sprintf("exit code %d: %s", code, said))
		case said != "":
			res.fail(name, said)
		default:
			res.passed++
		}
	}
	return res, nil
}

func dbench(r *run, dir string) (res result, err error) {
	err = r.one(&res, "4 clients", dir, "dbench", "-D", dir, "-t", strconv.Itoa(3*r.seconds), "4")
	return res, err
}

//go:embed git.sh
var gitScript string

//go:embed sqlite.sh
var sqliteScript string

//go:embed copies.sh
var copiesScript string

// script is a suite of ours: a script whose functions named t_NAME are tests,
// each run in a directory of its own.
func script(text string) func(*run, string) (result, error) {
	return func(r *run, dir string) (res result, err error) {
		for _, m := range regexp.MustCompile(`(?m)^t_(\w+)\(\)`).FindAllStringSubmatch(text, -1) {
			sub := filepath.Join(dir, m[1])
			if err := os.Mkdir(sub, 0o755); err != nil {
				return res, err
			}
			err = errors.Join(err, r.one(&res, m[1], sub, "sh", "-euc", text+"\nt_"+m[1]+` "$1"`, "sh", r.dirs.Disk))
		}
		if res.passed+len(res.failed) == 0 {
			err = errors.Join(err, errors.New("no test in the script"))
		}
		return res, err
	}
}
