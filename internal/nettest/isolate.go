package nettest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	// setUpVariable tells the re-executed binary that its namespaces are fresh.
	setUpVariable = "PORTSNARE_NETTEST_SET_UP"

	// marker lies in the private /run. It says "already isolated" also to
	// commands that a test starts with an environment of their own.
	marker = "/run/portsnare-nettest"
)

// remedy ends every message about namespaces that we could not have.
const remedy = "run the tests as root, or allow user namespaces " +
	"(sysctl kernel.unprivileged_userns_clone=1, on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0; " +
	"a container needs --privileged)"

// Main runs the tests of m isolated, as [Isolate] does, and exits.
func Main(m *testing.M) {
	Isolate()
	os.Exit(m.Run())
}

// Isolate returns in a process that has mount, network and process namespaces
// of its own, where it is root, /run is empty and only the loopback interface
// exists. It gets there by starting the same binary again with the same
// arguments; the outer process waits for it and exits with its status. When the
// inner process ends, the kernel ends all that it started. Call it first thing
// in TestMain; a TestMain that only runs its tests calls [Main].
//
// Where namespaces are forbidden, it exits with status 1 and says what to do.
func Isolate() {
	if _, err := os.Stat(marker); err == nil {
		return
	}
	if os.Getenv(setUpVariable) == "" {
		os.Exit(runIsolated())
	}
	if err := setUp(); err != nil {
		fmt.Fprintf(os.Stderr, "nettest: %v; %s\n", err, remedy)
		os.Exit(1)
	}
}

// runIsolated starts this binary again in fresh namespaces and returns its exit
// status.
func runIsolated() int {
	// The parent-death signal comes when the starting thread ends, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	self, err := os.Executable()
	if err != nil {
		fmt.Fprintf(os.Stderr, "nettest: find the test binary: %v\n", err)
		return 1
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), setUpVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL,
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}

	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		fmt.Fprintf(os.Stderr, "nettest: start the tests in namespaces of their own: %v; %s\n", err, remedy)
		return 1
	case exit.ExitCode() < 0: // by a signal
		fmt.Fprintf(os.Stderr, "nettest: the tests ended by %v\n", exit)
		return 1
	}
	return exit.ExitCode()
}

// setUp makes the fresh namespaces fit to live in.
func setUp() error {
	if err := os.Unsetenv(setUpVariable); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := unix.Mount("nettest", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=64m"); err != nil {
		return fmt.Errorf("mount a private /run: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount a private /proc: %w", err)
	}
	if err := ip("link", "set", "lo", "up"); err != nil {
		return err
	}
	return os.WriteFile(marker, nil, 0o444)
}

// ip runs ip(8), which puts what went wrong into its output.
func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: apt-get install iproute2", err)
	}
	if err != nil {
		return fmt.Errorf("ip %q: %w: %s", args, err, out)
	}
	return nil
}
