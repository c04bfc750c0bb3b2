// Command vbootfs mounts a directory of GGUF models and the runtime that has
// them in shared memory.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vbootfs/fs"
	"vbootfs/fs/tree"
)

// Exit codes of mount(8).
const (
	exitUsage  = 1
	exitSystem = 2
	exitMount  = 32
)

// failure is an error with the exit code that goes with it.
type failure struct {
	code int
	err  error
}

func (f failure) Error() string { return f.err.Error() }
func (f failure) Unwrap() error { return f.err }

func usagef(format string, args ...any) error {
	return failure{exitUsage, fmt.Errorf(format, args...)}
}

func main() { os.Exit(run(os.Args, os.Stderr)) }

func run(args []string, stderr io.Writer) int {
	cmd := command()
	cmd.SetArgs(args[1:])
	err := cmd.Execute()
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "vbootfs: %v\n", err)
	var f failure
	if errors.As(err, &f) {
		return f.code
	}
	return exitUsage
}

func command() *cobra.Command {
	c := &config{logLevel: "warning"}
	var list []string
	cmd := &cobra.Command{
		Use:   "vbootfs [flags] SOURCE MOUNTPOINT [-o opt,opt=val]",
		Short: "mount GGUF models: write a file to load it, read files to inspect it",
		Long: `vbootfs mounts MOUNTPOINT/geometry_os_v7/output, an ordinary directory where writing
a *.gguf loads it into shared memory, and MOUNTPOINT/vector_boot, where everything
about the loaded models is a file. SOURCE is the directory that holds output durably,
or "none" to keep it in memory only. Every flag can also be given to -o, as mount(8) does.`,
		Version:       tree.Version,
		Args:          exactly(2),
		SilenceErrors: true, SilenceUsage: true,
		RunE: func(_ *cobra.Command, args []string) error {
			for _, l := range list {
				if err := c.apply(l); err != nil {
					return err
				}
			}
			c.Source, c.Mountpoint = args[0], args[1]
			return start(c)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return failure{exitUsage, err} })
	cmd.Flags().StringArrayVarP(&list, "options", "o", nil, "options as mount(8) gives them")
	for i := range options {
		o := &options[i]
		v := cmd.Flags().VarPF(&flagValue{c: c, o: o}, o.name, o.short, o.doc)
		if o.arg == "" {
			v.NoOptDefVal = "true"
		}
	}
	cmd.AddCommand(genModel(), checkCommand())
	return cmd
}

func exactly(n int) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef("want SOURCE and MOUNTPOINT, have %d arguments; see vbootfs --help", len(args))
		}
		return nil
	}
}

// flagValue lets a row of the table be a command-line flag.
type flagValue struct {
	c *config
	o *option
}

func (v *flagValue) Set(s string) error { return v.o.set(v.c, s) }
func (v *flagValue) String() string     { return "" }
func (v *flagValue) Type() string       { return v.o.arg }

// start mounts in this process or, unless it is to stay in the foreground, in a
// child that outlives it.
func start(c *config) error {
	if !c.foreground && os.Getenv(childEnv) == "" {
		return spawn()
	}
	raiseFiles()
	if err := confine(); err != nil {
		return failure{exitSystem, err}
	}
	return serve(c)
}

// serve mounts, says that the mount answers, and stays until it is unmounted.
func serve(c *config) error {
	unix.Umask(0) // modes of new files are the caller's, already masked
	log, err := logger(c)
	if err != nil {
		return failure{exitSystem, err}
	}
	c.Log = log
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.NumCPU() + fs.Readers)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	m, err := fs.New(c.Options)
	if err != nil {
		return failure{exitMount, err}
	}
	if err := ready(); err != nil {
		return failure{exitSystem, errors.Join(err, m.Unmount(context.Background()))}
	}
	ended := make(chan error, 1)
	go func() { ended <- m.Wait() }()
	select {
	case err = <-ended:
	case s := <-signals:
		log.WithField("signal", s).Info("unmounting")
		err = m.Unmount(context.Background())
	}
	if err != nil {
		log.WithError(err).Error("not everything could be put away")
		return failure{exitSystem, err}
	}
	return nil
}

// raiseFiles allows as many descriptors as the system gives: every known file takes one or two.
func raiseFiles() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return
	}
	if unix.Geteuid() == 0 {
		up := unix.Rlimit{Cur: 1 << 20, Max: max(l.Max, 1<<20)}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &up) == nil {
			return
		}
	}
	l.Cur = l.Max
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l) // it stays as it was
}

func logger(c *config) (*logrus.Logger, error) {
	log := logrus.New()
	level, err := logrus.ParseLevel(c.logLevel)
	if err != nil {
		return nil, err
	}
	log.SetLevel(level)
	switch {
	case c.logFile != "":
		name, err := filepath.Abs(c.logFile)
		if err != nil {
			return nil, err
		}
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err != nil {
			return nil, err
		}
		log.SetOutput(f)
	case !c.foreground:
		log.SetOutput(io.Discard)
	}
	return log, nil
}
