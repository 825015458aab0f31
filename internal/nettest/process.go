package nettest

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long the helpers wait for something that should happen soon.
// Only a failing test waits that long.
const patience = 20 * time.Second

// WaitFor returns once cond is true; it fails the test if that takes longer
// than 20 s. What is awaited is named in the failure. Where a process prints
// what is awaited, [Output.WaitLine] is the better choice.
func WaitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("still waiting after %v: %s", patience, what)
		}
	}
}

// A Process is a program that runs on a host.
type Process struct {
	Stdout, Stderr *Output

	cmd   *exec.Cmd
	ended chan struct{}
	err   error // of Wait; read it after ended is closed
}

// Start starts a program on the host. When the test ends, the program gets
// SIGTERM and, if it is still there ten seconds later, SIGKILL. If the test
// failed, what the program printed is logged.
func (h *Host) Start(t testing.TB, name string, args ...string) *Process {
	t.Helper()
	p := &Process{
		Stdout: new(Output),
		Stderr: new(Output),
		cmd:    h.Command(t.Context(), name, args...),
		ended:  make(chan struct{}),
	}
	p.cmd.Stdout, p.cmd.Stderr = p.Stdout, p.Stderr
	must(t, p.cmd.Start())
	go func() {
		defer close(p.ended)
		p.err = p.cmd.Wait()
		p.Stdout.end()
		p.Stderr.end()
	}()
	t.Cleanup(func() {
		<-p.ended // t.Context is done, so this takes ten seconds at most
		if t.Failed() {
			t.Logf("%s: %s %q: %v\nstdout:\n%s\nstderr:\n%s", h.Name, name, args, p.err, p.Stdout, p.Stderr)
		}
	})
	return p
}

// PID returns the program's process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends sig to the program.
func (p *Process) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	must(t, p.cmd.Process.Signal(sig))
}

// Wait waits until the program ends and returns what [exec.Cmd.Wait] says of
// it: nil for status 0. It fails the test if that takes longer than 20 s.
func (p *Process) Wait(t testing.TB) error {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("process %d (%s) still runs after %v", p.PID(), p.cmd, patience)
	}
	return p.err
}

// Stop sends SIGTERM and waits for the end as Wait does. A program that has
// ended already is not asked again.
func (p *Process) Stop(t testing.TB) error {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	return p.Wait(t)
}

// maxOutput bounds what an Output keeps. A process that prints more loses the
// reader of its pipe.
const maxOutput = 64 << 20

var errTooMuchOutput = errors.New("more than 64 MiB of output")

// An Output collects what a process prints. It is a Writer for the process and
// safe for concurrent use; the zero value is empty and ready.
type Output struct {
	mu      sync.Mutex
	text    []byte
	changed chan struct{} // closed at the next change; nil while nobody waits
	ended   bool
}

// Write takes what the process prints.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.text)+len(p) > maxOutput {
		return 0, errTooMuchOutput
	}
	o.text = append(o.text, p...)
	o.announceLocked()
	return len(p), nil
}

// end tells waiters that nothing more will come.
func (o *Output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.announceLocked()
}

func (o *Output) announceLocked() {
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}

// String returns everything printed so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// Lines returns the complete lines printed so far, without their line ends.
func (o *Output) Lines() []string { return completeLines(o.String()) }

func completeLines(text string) []string {
	lines := strings.Split(text, "\n")
	return lines[:len(lines)-1]
}

// WaitLine returns the first complete line that contains text, printed already
// or yet to come. It fails the test if there is none within 20 s, and at once
// when the process ends without one.
func (o *Output) WaitLine(t testing.TB, text string) string {
	t.Helper()
	deadline := time.After(patience)
	for {
		printed, changed := o.next()
		for _, line := range completeLines(printed) {
			if strings.Contains(line, text) {
				return line
			}
		}
		if changed == nil {
			t.Fatalf("the process ended without a line with %q; it printed:\n%s", text, printed)
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("no line with %q within %v, only:\n%s", text, patience, printed)
		}
	}
}

// next returns what was printed so far and a channel that is closed when that
// changes, or nil if it never will.
func (o *Output) next() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return string(o.text), nil
	}
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return string(o.text), o.changed
}
