// Package runcmd runs the commands that an administrator wrote for bans:
// PortSentry's KILL_ROUTE and KILL_RUN_CMD, and commands of one's own.
//
// [Module] is the output module. [Expand] and [ExpandBan] make a command of a
// template, a [Runner] runs it.
package runcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultTimeout is how long a command may take when a [Runner] does not say.
const DefaultTimeout = time.Minute

const (
	// grace is what a command has between SIGTERM and SIGKILL.
	grace = 2 * time.Second

	// groupPoll is how often we look whether a process group is empty. It is
	// far too short for the kernel to hand out all process numbers and come
	// back to this one, so what we find is the group, not a namesake.
	groupPoll = 10 * time.Millisecond

	// outputDelay is how long we read on after a command has ended, in case it
	// left the other end of the pipe to a process in the background.
	outputDelay = 100 * time.Millisecond
)

// A Runner runs commands in the working directory of this process, with
// /dev/null as standard input and in a process group of their own. They inherit no other descriptor, and of our signals only
// what is ignored: catch SIGPIPE with signal.Notify rather than signal.Ignore,
// or their pipelines never end.
//
// The zero value works. A Runner holds nothing while no command runs. It may be
// used by several goroutines at a time; PortSentry runs one command at a time,
// so whoever takes its place calls Run from one goroutine.
type Runner struct {
	// Stdout and Stderr take the command's output; nil drops it. An *os.File is
	// handed to the command itself. To anything else the output is copied until
	// the command ends: what its processes in the background print afterwards
	// is lost and may end them. A writer that blocks counts towards the timeout,
	// and Run returns even if it blocks for ever.
	Stdout, Stderr io.Writer

	// Env is the environment of commands; nil is that of this process.
	Env []string

	// Timeout is how long a command may take; zero means [DefaultTimeout].
	Timeout time.Duration

	// IgnoreStatus takes a command for done however it ended, as PortSentry
	// does. One that could not be started or had to be ended still fails.
	IgnoreStatus bool

	grace time.Duration // zero means the constant; tests are in a hurry
}

// Run runs command with /bin/sh and returns once it has ended; what it left
// running in the background goes on. The error says with which status or signal
// it ended.
//
// After the timeout, or when ctx ends, every process of the command's group
// gets SIGTERM and, if any is left two seconds later, SIGKILL. A process that
// has made a session or group of its own is out of reach.
func (r *Runner) Run(ctx context.Context, command string) error {
	return r.Exec(ctx, "/bin/sh", "-c", command)
}

// Exec is [Runner.Run] for a program with its arguments, without a shell. The
// program is a path.
func (r *Runner) Exec(ctx context.Context, program string, args ...string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("run command: %w", err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = r.Stdout, r.Stderr, r.Env
	cmd.WaitDelay = outputDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	keepDescriptors()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start command: %w", err)
	}
	var err error // of Wait; read it after ended is closed
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = cmd.Wait()
	}()

	timeout := r.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-ended:
		return r.judge(err)
	case <-timer.C:
		r.endGroup(cmd.Process.Pid, ended)
		return fmt.Errorf("command took longer than %v and was ended", timeout)
	case <-ctx.Done():
		r.endGroup(cmd.Process.Pid, ended)
		return fmt.Errorf("command was ended: %w", ctx.Err())
	}
}

// judge makes of what Wait returned the error of Run.
func (r *Runner) judge(err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // a process in the background holds the pipe
		return nil
	case !errors.As(err, &exit):
		return fmt.Errorf("run command: %w", err)
	case r.IgnoreStatus:
		return nil
	}
	switch exit.ExitCode() { // as POSIX has it for the shell
	case 126:
		return fmt.Errorf("command failed: %w (a program in it cannot be executed)", exit)
	case 127:
		return fmt.Errorf("command failed: %w (a program in it was not found)", exit)
	}
	return fmt.Errorf("command failed: %w", exit)
}

// endGroup ends the processes of a group and waits for ended, which is closed
// once the leader is collected and its output copied. Each wait is bounded: not
// even SIGKILL ends a process that waits for a dead disk.
func (r *Runner) endGroup(group int, ended <-chan struct{}) {
	wait := r.grace
	if wait == 0 {
		wait = grace
	}
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		// The group may be gone by now, which is what we want.
		_ = unix.Kill(-group, sig)
		if groupGone(group, wait) {
			break
		}
	}
	select {
	case <-ended:
	case <-time.After(wait):
	}
}

// groupGone waits until the group is empty, its dead collected, and reports
// whether that was so within the given time.
func groupGone(group int, within time.Duration) bool {
	late := time.NewTimer(within)
	defer late.Stop()
	tick := time.NewTicker(groupPoll)
	defer tick.Stop()
	for {
		if errors.Is(unix.Kill(-group, 0), unix.ESRCH) {
			return true
		}
		select {
		case <-tick.C:
		case <-late.C:
			return false
		}
	}
}

// keepDescriptors keeps our descriptors from commands. Those that Go opens are
// ours alone anyway; this is for those that we were started with. A kernel
// before Linux 5.11 does not know how, and then they pass.
func keepDescriptors() {
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}
