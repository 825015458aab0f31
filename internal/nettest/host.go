package nettest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Host is a network stack of its own, with a loopback interface and one
// Ethernet interface. It shares files, except those under /run, and processes
// with the test.
type Host struct {
	Name      string     // unique in this process, such as "target-1"
	Interface string     // its Ethernet interface, "eth0"
	IPv4      netip.Addr // in 192.0.2.0/24
	IPv6      netip.Addr // in 2001:db8::/64
	LinkLocal netip.Addr // in fe80::/64, without a zone

	namespace *os.File
}

// pairs numbers the pairs, so that parallel tests do not meet.
var pairs atomic.Int64

// NewPair returns two hosts joined by one wire: scanner is 192.0.2.1 and
// 2001:db8::1, target is 192.0.2.2 and 2001:db8::2. The wire is up and all
// addresses can be used when it returns; nothing else is sent on it but what
// the hosts send. Both hosts go when the test ends.
func NewPair(t testing.TB) (scanner, target *Host) {
	t.Helper()
	if _, err := os.Stat(marker); err != nil {
		t.Fatal("nettest: not isolated: the package's TestMain must call nettest.Main or nettest.Isolate")
	}
	n := pairs.Add(1)
	scanner = newHost(t, fmt.Sprintf("scanner-%d", n), 1)
	target = newHost(t, fmt.Sprintf("target-%d", n), 2)
	must(t, ip("link", "add", scanner.Interface, "netns", scanner.Name,
		"type", "veth", "peer", "name", target.Interface, "netns", target.Name))
	scanner.configure(t)
	target.configure(t)
	for _, h := range []*Host{scanner, target} {
		WaitFor(t, h.Name+" is on the wire", func() bool {
			return strings.Contains(h.Run(t, "ip", "link", "show", h.Interface), "state UP")
		})
	}
	return scanner, target
}

func newHost(t testing.TB, name string, number byte) *Host {
	t.Helper()
	must(t, ip("netns", "add", name))
	t.Cleanup(func() {
		if err := ip("netns", "delete", name); err != nil {
			t.Error(err)
		}
	})
	namespace, err := os.Open(filepath.Join("/run/netns", name))
	must(t, err)
	t.Cleanup(func() { namespace.Close() })
	return &Host{
		Name:      name,
		Interface: "eth0",
		IPv4:      netip.AddrFrom4([4]byte{192, 0, 2, number}),
		IPv6:      netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: number}),
		LinkLocal: netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: number}),
		namespace: namespace,
	}
}

// configure gives h its addresses. Without duplicate address detection an IPv6
// address can be used at once; no sysctl is needed, for /proc/sys is read-only
// in many containers.
func (h *Host) configure(t testing.TB) {
	t.Helper()
	for _, command := range []string{
		"link set lo up",
		"link set " + h.Interface + " addrgenmode none",
		"link set " + h.Interface + " up",
		fmt.Sprintf("address add %v/24 dev %s", h.IPv4, h.Interface),
		fmt.Sprintf("address add %v/64 dev %s nodad", h.IPv6, h.Interface),
		fmt.Sprintf("address add %v/64 dev %s nodad", h.LinkLocal, h.Interface),
	} {
		h.Run(t, "ip", strings.Fields(command)...)
	}
}

// stopPatience is how long a program may take to end when asked to.
const stopPatience = 10 * time.Second

// Command returns a command that will run on the host. When ctx is done, the
// program gets SIGTERM, and ten seconds later SIGKILL. Its process ID is the
// program's own.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	// nsenter replaces itself with the program, so no process stands between.
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + h.namespace.Name(), "--", name}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopPatience
	return cmd
}

// Run runs a program on the host and returns what it printed to standard
// output. If it fails, so does the test, with everything it printed.
func (h *Host) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var stderr strings.Builder
	cmd := h.Command(t.Context(), name, args...)
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %s %q: %v\n%s%s", h.Name, name, args, err, stdout, &stderr)
	}
	return string(stdout)
}

// Do calls fn on a thread that belongs to the host: sockets that fn itself
// opens, and processes that it starts, are the host's and stay so. Goroutines
// that fn starts are not on the host.
func (h *Host) Do(t testing.TB, fn func()) {
	t.Helper()
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	defer home.Close()
	must(t, unix.Setns(int(h.namespace.Fd()), unix.CLONE_NEWNET))
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Errorf("leave host %s: %v", h.Name, err)
			return // locked for ever, so that the thread ends with this goroutine
		}
		runtime.UnlockOSThread()
	}()
	fn()
}

// Listen opens a service on all of the host's addresses, IPv4 and IPv6, until
// it is closed or the test ends. The network is "tcp" or "udp". TCP connections
// are established and then wait; datagrams are left unread.
func (h *Host) Listen(t testing.TB, network string, port uint16) io.Closer {
	t.Helper()
	var service io.Closer
	var err error
	address := net.JoinHostPort("", strconv.Itoa(int(port)))
	h.Do(t, func() {
		if network == "udp" {
			service, err = net.ListenPacket(network, address)
		} else {
			service, err = net.Listen(network, address)
		}
	})
	must(t, err)
	t.Cleanup(func() { service.Close() }) // closing twice is harmless
	return service
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
