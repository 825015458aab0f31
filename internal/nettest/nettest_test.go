package nettest_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portsnare/portsnare/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func TestIsolated(t *testing.T) {
	t.Run("only loopback", func(t *testing.T) {
		interfaces, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		if len(interfaces) != 1 || interfaces[0].Name != "lo" || interfaces[0].Flags&net.FlagUp == 0 {
			t.Errorf("interfaces are %v, want lo alone, up", interfaces)
		}
	})
	t.Run("root in process namespace", func(t *testing.T) {
		if os.Geteuid() != 0 || os.Getpid() != 1 {
			t.Errorf("user %d, process %d; want 0, 1", os.Geteuid(), os.Getpid())
		}
		if self, err := os.Readlink("/proc/self"); err != nil || self != "1" {
			t.Errorf("/proc/self is %q (%v), want 1", self, err)
		}
	})
	t.Run("again is nothing new", func(t *testing.T) {
		t.Setenv("PORTSNARE_NETTEST_SET_UP", "") // as for a command with an environment of its own
		nettest.Isolate()
		if os.Getpid() != 1 {
			t.Errorf("process %d, want 1", os.Getpid())
		}
	})
}

// TestForbidden starts this binary as root without capabilities, out of sight
// of the marker that says it is isolated already.
func TestForbidden(t *testing.T) {
	const script = `mount -t tmpfs none /run && exec setpriv --bounding-set=-all --inh-caps=-all "$0" -test.run='^$'`
	out, err := exec.Command("unshare", "--mount", "sh", "-c", script, os.Args[0]).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("got %v, want exit status 1", err)
	}
	for _, want := range []string{"nettest: ", "operation not permitted", "run the tests as root"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it printed %q, want %q in it", out, want)
		}
	}
}

func TestPairTalks(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	zoned := target.LinkLocal.WithZone(scanner.Interface)
	for _, addr := range []netip.Addr{target.IPv4, target.IPv6, zoned} {
		t.Run("tcp "+addr.String(), func(t *testing.T) {
			service := target.Listen(t, "tcp", 8080)
			defer service.Close()
			scanner.Do(t, func() {
				conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 8080)))
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
			})
		})
		t.Run("closed port "+addr.String(), func(t *testing.T) {
			scanner.Do(t, func() {
				_, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 8081)))
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("dial: %v, want connection refused", err)
				}
			})
		})
	}
}

func TestListenUDP(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	service := target.Listen(t, "udp", 53).(net.PacketConn)
	scanner.Do(t, func() {
		conn, err := net.Dial("udp", netip.AddrPortFrom(target.IPv6, 53).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("who is there")); err != nil {
			t.Fatal(err)
		}
	})
	if err := service.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, from, err := service.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "who is there" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	if got := from.(*net.UDPAddr).AddrPort().Addr(); got != scanner.IPv6 {
		t.Errorf("datagram from %v, want %v", got, scanner.IPv6)
	}
}

// TestPairsAreApart has several pairs with the same addresses at a time.
func TestPairsAreApart(t *testing.T) {
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			scanner, target := nettest.NewPair(t)
			target.Listen(t, "tcp", 80)
			scanner.Do(t, func() {
				conn, err := net.Dial("tcp", netip.AddrPortFrom(target.IPv4, 80).String())
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
			})
		})
	}
}

func TestHostsGoWithTheTest(t *testing.T) {
	var name string
	t.Run("pair", func(t *testing.T) {
		scanner, _ := nettest.NewPair(t)
		name = scanner.Name
	})
	if out, err := exec.Command("ip", "netns", "list").Output(); err != nil || strings.Contains(string(out), name) {
		t.Errorf("ip netns list: %v, %q; want nothing of %s", err, out, name)
	}
}

// TestDoComesBack leaves by a panic; t.Fatal leaves by the same deferred calls.
func TestDoComesBack(t *testing.T) {
	_, target := nettest.NewPair(t)
	home := namespace(t)
	func() {
		defer func() { _ = recover() }()
		target.Do(t, func() {
			if namespace(t) == home {
				t.Error("inside Do the thread is not on the host")
			}
			panic("leave")
		})
	}()
	if got := namespace(t); got != home {
		t.Errorf("after Do the thread is in %s, want %s", got, home)
	}
}

func namespace(t *testing.T) string {
	t.Helper()
	link, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestRun(t *testing.T) {
	_, target := nettest.NewPair(t)
	out := target.Run(t, "ip", "-brief", "address", "show", target.Interface)
	for _, want := range []string{"192.0.2.2/24", "2001:db8::2/64", "fe80::2/64"} {
		if !strings.Contains(out, want) {
			t.Errorf("addresses are %q, want %s among them", out, want)
		}
	}
}

func TestProcess(t *testing.T) {
	_, target := nettest.NewPair(t)
	t.Run("ends when asked", func(t *testing.T) {
		p := target.Start(t, "sh", "-c", `trap 'echo bye; exit 3' TERM; sleep 1000 >/dev/null 2>&1 & echo "ready $$"; wait`)
		if got, want := p.Stdout.WaitLine(t, "ready"), fmt.Sprint("ready ", p.PID()); got != want {
			t.Errorf("it printed %q, want %q", got, want)
		}
		err := p.Stop(t)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 {
			t.Errorf("Stop returned %v, want exit status 3", err)
		}
		if lines := p.Stdout.Lines(); len(lines) != 2 || lines[1] != "bye" {
			t.Errorf("it printed %q, want ready and bye", lines)
		}
	})
	t.Run("ends by itself", func(t *testing.T) {
		p := target.Start(t, "sh", "-c", "echo done >&2; printf unfinished")
		if err := p.Wait(t); err != nil {
			t.Errorf("Wait returned %v", err)
		}
		if err := p.Stop(t); err != nil {
			t.Errorf("Stop after the end returned %v", err)
		}
		p.Stderr.WaitLine(t, "done")
		if lines := p.Stdout.Lines(); len(lines) != 0 || p.Stdout.String() != "unfinished" {
			t.Errorf("lines %q of %q, want none", lines, p.Stdout)
		}
	})
	t.Run("gets signals", func(t *testing.T) {
		p := target.Start(t, "sleep", "1000")
		p.Signal(t, syscall.SIGKILL)
		if err := p.Wait(t); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("Wait returned %v, want signal: killed", err)
		}
	})
}

func TestWaitLineGivesUpAtTheEnd(t *testing.T) {
	_, target := nettest.NewPair(t)
	p := target.Start(t, "echo", "something else")
	failure := failureOf(t, func(tb testing.TB) { p.Stdout.WaitLine(tb, "ready") })
	if !strings.Contains(failure, `ended without a line with "ready"`) || !strings.Contains(failure, "something else") {
		t.Errorf("failure is %q, want it to say what was awaited and printed", failure)
	}
}

func TestRunShowsWhatWentWrong(t *testing.T) {
	_, target := nettest.NewPair(t)
	failure := failureOf(t, func(tb testing.TB) { target.Run(tb, "sh", "-c", "echo why >&2; exit 4") })
	for _, want := range []string{target.Name, "exit status 4", "why"} {
		if !strings.Contains(failure, want) {
			t.Errorf("failure is %q, want %q in it", failure, want)
		}
	}
}

// A failingTB is a test that may fail without failing the test it belongs to.
type failingTB struct {
	testing.TB
	failure string
}

func (f *failingTB) Fatalf(format string, args ...any) {
	f.failure = fmt.Sprintf(format, args...)
	panic(f)
}

// failureOf returns the message with which fn fails its test.
func failureOf(t *testing.T, fn func(testing.TB)) (failure string) {
	t.Helper()
	tb := &failingTB{TB: t}
	defer func() {
		t.Helper()
		if r := recover(); r != tb {
			t.Fatalf("fn ended with %v, want a failed test", r)
		}
		failure = tb.failure
	}()
	fn(tb)
	return ""
}
