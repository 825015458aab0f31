package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// insideName is the name that the process inside the namespaces goes by.
const insideName = "portsnare-bench-inside"

// isInside reports whether this process is the one that reexec started. Being
// the first process of its namespace, it takes everything with it when it ends.
func isInside(name string) bool { return name == insideName && os.Getpid() == 1 }

// reexec runs this program again in namespaces of its own and returns when it
// has ended. The kernel kills it if this process dies first.
func reexec(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	// The death signal is sent when the starting thread ends, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = insideName
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("making namespaces (this needs root): %w", err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return errReported
	}
	return err
}

// errReported means that the process inside has said what went wrong.
var errReported = errors.New("reported by the process inside")

// runDir is where the detector's files go: in memory, so that no disk is
// measured.
const runDir = "/run/bench"

// hideRun gives this process and its children a /proc of their own, and an
// empty /run, so that the detector finds neither the machine's log socket nor
// another instance's files.
func hideRun() error {
	mounts := []struct {
		what, where, kind string
		flags             uintptr
	}{
		{"none", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.what, m.where, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mounting a private %s: %w", m.where, err)
		}
	}
	return os.Mkdir(runDir, 0o755)
}

// onThread runs f on a thread of its own, which ends with it, so that what f
// does to its thread (namespace, cores) goes no further.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		done <- f()
	}()
	return <-done
}

// cores says which processor core runs what.
type cores struct {
	Generator int `json:"generator"` // also does the receiving host's kernel work
	Daemon    int `json:"daemon"`
}

// chooseCores returns two different cores if this process may use two.
func chooseCores() (cores, error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return cores{}, fmt.Errorf("asking for the cores: %w", err)
	}
	var found []int
	for i := 0; len(found) < min(2, allowed.Count()); i++ {
		if allowed.IsSet(i) {
			found = append(found, i)
		}
	}
	return cores{Generator: found[0], Daemon: found[len(found)-1]}, nil
}

// pin binds the calling thread, and what it starts, to one core.
func pin(core int) error {
	var set unix.CPUSet
	set.Set(core)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("binding to core %d: %w", core, err)
	}
	return nil
}
