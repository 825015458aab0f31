package outputs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"
)

// leaveTaking is how long is waited for what a process that has ended wrote: as
// long as its children live, they hold its pipes open.
const leaveTaking = 500 * time.Millisecond

// A process is the process of a module, from its start to its end. It starts
// once. It is how go-plugin runs a program: go-plugin's own runner takes over the
// standard input, notices the end of a process only once its children have ended
// too, connects wherever the module says, and panics about some log lines.
type process struct {
	program      *program
	capabilities []uintptr
	log          *moduleLog

	environment []string
	sockets     string // the only directory where the module may listen

	stdout, stderr *os.File
	logged         sync.WaitGroup // the reader of stderr
	exited         chan struct{}  // closed when the process is gone

	mu     sync.Mutex
	cmd    *exec.Cmd // guarded by mu; nil unless the process can be killed
	killed bool      // guarded by mu; kill was called in time
	reason error     // guarded by mu; why it was killed
	ended  error     // guarded by mu; how it ended
	pid    int       // 0 before the start
}

var _ runner.Runner = (*process)(nil)

func newProcess(p *program, capabilities []uintptr, log *moduleLog) *process {
	return &process{program: p, capabilities: capabilities, log: log, exited: make(chan struct{})}
}

// prepare takes over what go-plugin wants the process to have.
func (p *process) prepare(_ hclog.Logger, wanted *exec.Cmd, sockets string) (runner.Runner, error) {
	p.environment, p.sockets = wanted.Env, sockets
	return p, nil
}

// Start starts the process. It has nothing of the daemon's: no descriptors, no
// environment but go-plugin's, and no way to gain privileges.
func (p *process) Start(context.Context) error {
	stdout, outWriter, err := os.Pipe()
	if err != nil {
		return err
	}
	defer outWriter.Close()
	stderr, errWriter, err := os.Pipe()
	if err != nil {
		stdout.Close()
		return err
	}
	defer errWriter.Close()
	p.stdout, p.stderr = stdout, stderr

	cmd := &exec.Cmd{
		Path:   p.program.path,
		Args:   []string{p.program.name},
		Env:    append([]string{}, p.environment...), // never nil: that is ours
		Dir:    "/",
		Stdout: outWriter,
		Stderr: errWriter,
		SysProcAttr: &syscall.SysProcAttr{
			Setpgid:     true, // a terminal's or an administrator's signals to us are not for it
			Pdeathsig:   syscall.SIGKILL,
			AmbientCaps: p.capabilities,
		},
	}
	started := make(chan error)
	go p.live(cmd, started)
	if err := <-started; err != nil {
		return err
	}
	p.logged.Go(func() { p.log.read(stderr) })
	return nil
}

// live is the life of the process, in a thread that lives as long: the kernel
// takes the end of the thread that started a process for the parent's death. The
// thread is never unlocked, so that it ends with this function, and with it that
// it cannot gain privileges, which the process inherits.
func (p *process) live(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer close(p.exited)
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err == nil {
		err = keepDescriptors()
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		p.mu.Lock()
		p.ended = err
		p.mu.Unlock()
		started <- err
		return
	}
	p.mu.Lock()
	p.cmd, p.pid = cmd, cmd.Process.Pid
	p.mu.Unlock()
	started <- nil
	awaitExit(cmd.Process.Pid)

	p.mu.Lock()
	defer p.mu.Unlock()
	p.killLocked() // what it leaves behind in its group, while the number is taken
	p.cmd, p.ended = nil, cmd.Wait()
	until := time.Now().Add(leaveTaking)
	_ = p.stdout.SetReadDeadline(until)
	_ = p.stderr.SetReadDeadline(until)
}

// awaitExit returns when the process has ended, and leaves it a zombie.
func awaitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// keepDescriptors has programs that are started not inherit what the daemon
// itself inherited. What Go opens is not inherited anyway.
func keepDescriptors() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("find out what a module would inherit: %w", err)
	}
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// kill ends the process and its group. The first reason is kept; nil is none.
func (p *process) kill(reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason == nil {
		p.reason = reason
	}
	p.killed = p.killed || p.cmd != nil
	p.killLocked()
}

func (p *process) killLocked() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = unix.Kill(-p.pid, unix.SIGKILL)
	}
}

// fate waits for the end of the process and says why it came; nil says that it
// was killed for no given reason.
func (p *process) fate() error {
	<-p.exited
	p.logged.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	how := "exit status 0"
	if p.ended != nil {
		how = p.ended.Error()
	}
	switch said := p.log.lastWords(); {
	case p.killed && killedBy(p.ended):
		return p.reason
	case said != "":
		return fmt.Errorf("the process ended: %s: %s", how, said)
	}
	return fmt.Errorf("the process ended: %s", how)
}

// killedBy reports whether a process that ended so was killed: another end may
// have come before ours.
func killedBy(ended error) bool {
	exit, ok := errors.AsType[*exec.ExitError](ended)
	return ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

// close waits for the end of the process and releases what it held.
func (p *process) close() {
	if p.stdout == nil {
		return
	}
	<-p.exited
	p.logged.Wait()
	p.stdout.Close()
	p.stderr.Close()
}

// Wait waits for the end of the process.
func (p *process) Wait(context.Context) error {
	<-p.exited
	return nil
}

// Kill ends the process.
func (p *process) Kill(context.Context) error {
	p.kill(nil)
	return nil
}

// Stdout is where the module says how to reach it.
func (p *process) Stdout() io.ReadCloser { return p.stdout }

// Stderr is empty: go-plugin panics if "@message" of a log line is no text.
func (p *process) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Diagnose has nothing to add to what the log says.
func (p *process) Diagnose(context.Context) string { return "" }

// Name is the program's path.
func (p *process) Name() string { return p.program.path }

// ID is the number of the process, empty before its start.
func (p *process) ID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pid == 0 {
		return ""
	}
	return strconv.Itoa(p.pid)
}

// PluginToHost refuses to connect to anything but a socket in the directory that
// was made for it.
func (p *process) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" || filepath.Dir(filepath.Clean(address)) != p.sockets {
		return "", "", fmt.Errorf("the module listens on %.100q, not in the directory it was given", network+" "+address)
	}
	return network, address, nil
}

// HostToPlugin changes nothing.
func (p *process) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}
