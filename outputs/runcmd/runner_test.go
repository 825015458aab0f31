package runcmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/internal/nettest"
)

func TestRunTellsHowTheCommandEnded(t *testing.T) {
	tests := map[string]struct {
		command string
		want    string // text of the error
	}{
		"success":        {"exit 0", ""},
		"status":         {"exit 3", "command failed: exit status 3"},
		"last counts":    {"false; true", ""},
		"signal":         {"kill -KILL $$", "command failed: signal: killed"},
		"not found":      {"./no-such-program", "command failed: exit status 127 (a program in it was not found)"},
		"not executable": {"/dev/null", "command failed: exit status 126 (a program in it cannot be executed)"},
		"no shell words": {"(", "command failed: exit status 2"},
		"empty":          {"", ""},
		"NUL":            {"true\x00", "start command: fork/exec /bin/sh: invalid argument"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := new(Runner).Run(t.Context(), tt.command)
			if got := text(err); got != tt.want {
				t.Errorf("Run(%q) = %q, want %q", tt.command, got, tt.want)
			}

			ignorant := Runner{IgnoreStatus: true}
			err = ignorant.Run(t.Context(), tt.command)
			if started := !strings.HasPrefix(tt.want, "start"); (err == nil) != started {
				t.Errorf("ignoring the status, Run(%q) = %v", tt.command, err)
			}
		})
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestRunWhereTheDaemonRuns(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("PORTSNARE_TEST", "from the daemon")
	var stdout, stderr bytes.Buffer
	r := Runner{Stdout: &stdout, Stderr: &stderr}
	if err := r.Run(t.Context(), `cat; echo "$PORTSNARE_TEST"; pwd -P >&2`); err != nil {
		t.Fatal(err)
	}
	if got := stdout.String(); got != "from the daemon\n" {
		t.Errorf("standard output is %q", got)
	}
	physical, err := filepath.EvalSymlinks(dir)
	if got := stderr.String(); got != physical+"\n" || err != nil {
		t.Errorf("standard error is %q, want %q (%v)", got, physical+"\n", err)
	}
}

// pipelines rely on SIGPIPE; so the daemon catches it and does not ignore it.
func TestRunWithDefaultSignals(t *testing.T) {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGPIPE)
	defer signal.Stop(caught)
	var out bytes.Buffer
	r := Runner{Stdout: &out}
	if err := r.Run(t.Context(), "grep -E '^Sig(Blk|Ign):' /proc/self/status"); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		name, mask, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		bits, err := strconv.ParseUint(mask, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		if bits&(1<<(syscall.SIGPIPE-1)) != 0 || bits&(1<<(syscall.SIGTERM-1)) != 0 {
			t.Errorf("%s is %s: holds SIGPIPE or SIGTERM", name, mask)
		}
	}
	if strings.Count(out.String(), "\n") != 2 {
		t.Errorf("the signals of the command are %q", out.String())
	}
}

func TestRunKeepsDescriptors(t *testing.T) {
	// As if we had been started with it.
	var inherited [2]int
	if err := unix.Pipe(inherited[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited[0])
	defer unix.Close(inherited[1])
	command := fmt.Sprintf("! test -e /proc/self/fd/%d && test -e /proc/self/fd/2", inherited[1])
	if err := new(Runner).Run(t.Context(), command); err != nil {
		t.Errorf("the command sees descriptor %d: %v", inherited[1], err)
	}
}

// A command's process in the background neither holds up Run nor ends with it.
func TestRunLeavesTheBackgroundAlone(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, w := range map[string]io.ReadWriter{"file": file, "buffer": new(bytes.Buffer)} {
		t.Run(name, func(t *testing.T) {
			r := Runner{Stdout: w, Timeout: 10 * time.Second}
			if err := r.Run(t.Context(), "sleep 1000 & echo $!"); err != nil {
				t.Fatal(err)
			}
			if s, ok := w.(io.Seeker); ok {
				if _, err := s.Seek(0, io.SeekStart); err != nil {
					t.Fatal(err)
				}
			}
			var pid int
			if _, err := fmt.Fscan(w, &pid); err != nil {
				t.Fatalf("read the number of the process in the background: %v", err)
			}
			if !running(t, pid) {
				t.Error("the process in the background is gone")
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRunEndsWhatTakesTooLong(t *testing.T) {
	tests := map[string]struct {
		command string // prints the numbers of the processes that have to end
		survive bool   // they outlive it
	}{
		"shell":               {"echo $$; while :; do sleep 1000; done", false},
		"shell that stays":    {"trap '' TERM; echo $$; while :; do sleep 1000; done", false},
		"grandchild":          {"sh -c 'echo $$; sleep 1000; :'; :", false},
		"in the background":   {"sleep 1000 & echo $!; wait", false},
		"grandchild stays":    {"sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1000; done' & wait", false},
		"stopped":             {"echo $$; kill -STOP $$", false},
		"session of its own":  {"setsid sh -c 'echo $$; exec sleep 1000' & wait", true},
		"holds on to its out": {"echo $$; yes >&2", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var out bytes.Buffer
			r := Runner{Stdout: writerFunc(func(p []byte) (int, error) {
				cancel() // now that it is under way
				return out.Write(p)
			}), grace: 200 * time.Millisecond}
			err := r.Run(ctx, tt.command)
			if want := "command was ended: context canceled"; text(err) != want || !errors.Is(err, context.Canceled) {
				t.Errorf("Run(%q) = %v, want %s", tt.command, err, want)
			}
			var pid int
			if _, err := fmt.Sscan(out.String(), &pid); err != nil {
				t.Fatalf("read a process number from %q: %v", out.String(), err)
			}
			if got := running(t, pid); got != tt.survive {
				t.Errorf("%q: process %d still there: %v, want %v", tt.command, pid, got, tt.survive)
			}
			if tt.survive {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestRunDoesNotWaitForEverToWrite(t *testing.T) {
	read := make(chan struct{})
	defer close(read)
	stuck := writerFunc(func(p []byte) (int, error) { <-read; return len(p), nil })
	r := Runner{Stdout: stuck, Timeout: 50 * time.Millisecond, grace: 50 * time.Millisecond}
	if err := r.Run(t.Context(), "echo"); err == nil {
		t.Error("Run = nil though nobody took the output")
	}
}

func TestRunGivesTimeToEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	r := Runner{Stdout: writerFunc(func(p []byte) (int, error) {
		cancel() // now that the trap is set
		return out.Write(p)
	})}
	err := r.Run(ctx, "trap 'sleep 0.1; echo tidied up; exit' TERM; echo ready; while :; do sleep 0.01; done")
	if !errors.Is(err, context.Canceled) || out.String() != "ready\ntidied up\n" {
		t.Errorf("Run = %v, and the command printed %q", err, out.String())
	}
}

// What is ended was not done, even for who ignores the status.
func TestRunTimesOut(t *testing.T) {
	r := Runner{Timeout: 50 * time.Millisecond, IgnoreStatus: true}
	if got, want := text(r.Run(t.Context(), "sleep 1000")), "command took longer than 50ms and was ended"; got != want {
		t.Errorf("Run = %q, want %q", got, want)
	}
}

func TestRunNotAfterTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	made := filepath.Join(t.TempDir(), "made")
	if err := new(Runner).Run(ctx, "> "+made); !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want %v", err, context.Canceled)
	}
	if _, err := os.Stat(made); err == nil {
		t.Error("the command ran")
	}
}

func TestRunLeaksNothing(t *testing.T) {
	r := Runner{Stdout: new(bytes.Buffer)}
	run := func(n int) {
		for range n {
			if err := r.Run(t.Context(), ":"); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(1) // what Go opens once
	descriptors, goroutines := openDescriptors(t), runtime.NumGoroutine()
	run(1000)
	if got := openDescriptors(t); got != descriptors {
		t.Errorf("%d descriptors are open, before it were %d", got, descriptors)
	}
	nettest.WaitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("child %d was not collected (%v)", pid, err)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// running reports whether the process is there and no zombie.
func running(t *testing.T, pid int) bool {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	_, state, found := strings.Cut(string(stat), ") ")
	if !found {
		t.Fatalf("process %d: state in %q", pid, stat)
	}
	return state[0] != 'Z' && state[0] != 'X'
}

func BenchmarkRun(b *testing.B) {
	r := new(Runner)
	for b.Loop() {
		if err := r.Run(b.Context(), ":"); err != nil {
			b.Fatal(err)
		}
	}
}
