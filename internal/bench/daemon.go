package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	historyFile = runDir + "/history.log"
	configFile  = runDir + "/portsnare.toml"
	stateFile   = runDir + "/state.db"
	stderrFile  = runDir + "/stderr"

	readyText    = "portsnare is active"
	readyTimeout = 10 * time.Second
	stopTimeout  = 15 * time.Second
	pollInterval = 10 * time.Millisecond
)

// config watches the trap port and writes PortSentry's line for each probe.
var config = fmt.Sprintf(`mode = "stealth"
interfaces = ["all"]
control = "none"
state = %q
[detect]
tcp_ports = "%d"
service_check = true
[log]
stdout = false
history = %q
`, stateFile, trapPort, historyFile)

// A daemon is the detector under test, running on the target host.
type daemon struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended
	end    error         // cmd.Wait's answer; read only after exited is closed
}

// startDaemon starts the detector on one core and returns when it has said that it
// is ready.
func startDaemon(ctx context.Context, path, config, ready string, core int) (*daemon, error) {
	if err := os.WriteFile(configFile, []byte(config), 0o644); err != nil {
		return nil, err
	}
	for _, file := range []string{historyFile, stateFile} {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	stderr, err := os.Create(stderrFile)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()

	d := &daemon{cmd: exec.Command(path, "-c", configFile), exited: make(chan struct{})}
	d.cmd.Stderr = stderr
	d.cmd.Dir = runDir
	err = onThread(func() error {
		if err := pin(core); err != nil {
			return err
		}
		return d.cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("starting the daemon: %w", err)
	}
	go func() {
		d.end = d.cmd.Wait()
		close(d.exited)
	}()
	if err := d.waitReady(ctx, ready); err != nil {
		d.kill()
		return nil, err
	}
	return d, nil
}

// waitReady returns when the daemon has said ready.
func (d *daemon) waitReady(ctx context.Context, ready string) error {
	deadline := time.After(readyTimeout)
	for {
		select {
		case <-d.exited:
			return fmt.Errorf("the daemon ended at start: %w", d.failure())
		case <-deadline:
			return fmt.Errorf("the daemon did not say %q within %v: %s", ready, readyTimeout, stderrTail())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollInterval):
			if text, err := os.ReadFile(stderrFile); err == nil && bytes.Contains(text, []byte(ready)) {
				return nil
			}
		}
	}
}

// stop asks the daemon to end and waits until it has.
func (d *daemon) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping the daemon: %w", err)
	}
	select {
	case <-d.exited:
		if d.end != nil {
			return fmt.Errorf("stopping the daemon: %w", d.failure())
		}
		return nil
	case <-time.After(stopTimeout):
		d.kill()
		return fmt.Errorf("the daemon did not end within %v of SIGTERM", stopTimeout)
	}
}

// kill ends the daemon at once. It may have ended already.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.exited
}

// failure says how the daemon, which has exited, ended and what it said last.
func (d *daemon) failure() error {
	how := "exit status 0"
	if d.end != nil {
		how = d.end.Error()
	}
	return fmt.Errorf("%s: %s", how, stderrTail())
}

// cpu returns the processor time that the daemon has used.
func (d *daemon) cpu() (time.Duration, error) {
	// The clock of another process's time, threads that ended included: see
	// clock_getcpuclockid(3).
	const cpuclockSched = 2
	clock := int32(^d.cmd.Process.Pid<<3 | cpuclockSched)
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("reading the daemon's processor time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// peakMemory returns the most memory that the daemon has held resident, in
// bytes, its packet rings included.
func (d *daemon) peakMemory() (int64, error) {
	name := filepath.Join("/proc", strconv.Itoa(d.cmd.Process.Pid), "status")
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kilobytes int64
			if _, err := fmt.Sscan(value, &kilobytes); err != nil {
				return 0, fmt.Errorf("%s: VmHWM %q: %w", name, value, err)
			}
			return kilobytes << 10, nil
		}
	}
	return 0, fmt.Errorf("%s: no VmHWM", name)
}

// stderrTail returns the end of what the daemon has said.
func stderrTail() string {
	const most = 2000
	text, err := os.ReadFile(stderrFile)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text[max(0, len(text)-most):]))
}

// losses are what the daemon says it lost when it stops; nil if it does not say.
type losses struct {
	Packets *uint64 `json:"packets"` // dropped by the kernel before the daemon read them
	Events  *uint64 `json:"events"`  // dropped on their way to the history file
}

// statedLosses reads the counters in what the daemon has said at its end.
func statedLosses(said string) losses {
	return losses{Packets: counter(said, "packets_lost"), Events: counter(said, "events_lost")}
}

// counter returns the value of the last "name=value" in text, or nil if there
// is none.
func counter(text, name string) *uint64 {
	i := strings.LastIndex(text, name+"=")
	if i < 0 {
		return nil
	}
	var n uint64
	if _, err := fmt.Sscan(text[i+len(name)+1:], &n); err != nil {
		return nil
	}
	return &n
}
