package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

// roleVariable has this test binary play a program that a test needs.
const roleVariable = "PORTSNARE_GUARD_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); role {
	case "":
		nettest.Main(m)
	case "starved":
		os.Exit(watchStarved())
	default:
		os.Exit(serve(role))
	}
}

// serve listens on an address until it is told to end.
func serve(address string) int {
	service, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer service.Close()
	fmt.Println("listening")
	select {}
}

// watchStarved counts how often Watch fails until it has descriptors enough.
func watchStarved() int {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		return 1
	}
	// The runtime cannot do without its own descriptors, so it gets them first.
	r, _, err := os.Pipe()
	if err != nil || r.SetDeadline(time.Time{}) != nil {
		return 1
	}
	failures := 0
	for limit := uint64(3); limit < 40; limit++ {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: before.Max}); err != nil {
			return 1
		}
		g, err := Watch(Config{}, nil)
		if err == nil {
			fmt.Println("failures:", failures, "own address:", why(g, "192.0.2.2/32"))
			return 0
		}
		failures++
	}
	return 1
}

// watchHost watches host, but does not run.
func watchHost(t testing.TB, host *nettest.Host, config Config) (*Guard, *logtest.Hook) {
	t.Helper()
	if config.ResolvConf == nil {
		config.ResolvConf = []string{}
	}
	logger, logged := logtest.NewNullLogger()
	var g *Guard
	host.Do(t, func() {
		var err error
		if g, err = Watch(config, logrus.NewEntry(logger)); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g, logged
}

// runGuard watches host until the test ends.
func runGuard(t testing.TB, host *nettest.Host, config Config) *Guard {
	t.Helper()
	g, _ := watchHost(t, host, config)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return g
}

// eventually waits until g spares a ban of prefix with want for a reason.
func eventually(t testing.TB, g *Guard, prefix, want string) {
	t.Helper()
	nettest.WaitFor(t, fmt.Sprintf("%s is spared as %q", prefix, want), func() bool { return why(g, prefix) == want })
}

func TestWatchKnowsTheHost(t *testing.T) {
	_, target := nettest.NewPair(t)
	for _, command := range []string{
		"address add 203.0.113.1 peer 203.0.113.2 dev eth0",
		"address add 198.51.100.8/31 dev eth0",
		"address add 198.51.100.65/26 broadcast 198.51.100.120 dev eth0",
		"route add local 203.0.113.128/25 dev lo",
		"route add local 203.0.113.0/27 dev lo table 100", // as transparent proxies have
		"route add default via 192.0.2.1",
		"route add 203.0.113.64/27 via 192.0.2.7 table 1000",
		"route add 203.0.113.96/27 nexthop via 192.0.2.8 nexthop via 192.0.2.9",
		"route add 198.51.100.192/27 via inet6 2001:db8::6",
		"-6 route add default via 2001:db8::7",
		"-6 route add 2001:db8:1::/48 nexthop via 2001:db8::8 nexthop via 2001:db8::9",
		"-6 route add 2001:db8:2::/48 via fe80::9 dev eth0",
		"nexthop add id 5 via 192.0.2.10 dev eth0",
		"nexthop add id 6 via 2001:db8::a dev eth0",
		"nexthop add id 7 group 5",
		"route add 198.51.100.224/27 nhid 7",
		"-6 route add local ::/0 dev lo table local",
	} {
		target.Run(t, "ip", strings.Fields(command)...)
	}
	g, _ := watchHost(t, target, Config{})
	for ban, want := range map[string]string{
		"192.0.2.2/32":         whyOwn,
		"2001:db8::2/128":      whyOwn,
		"203.0.113.1/32":       whyOwn,
		"203.0.113.200/32":     whyOwn, // by a route
		"198.51.100.8/32":      whyOwn,
		"203.0.113.2/32":       whyGateway, // at the other end
		"192.0.2.1/32":         whyGateway,
		"192.0.2.7/32":         whyGateway,
		"192.0.2.8/32":         whyGateway,
		"192.0.2.9/32":         whyGateway,
		"192.0.2.10/32":        whyGateway,
		"2001:db8::6/128":      whyGateway,
		"2001:db8::7/128":      whyGateway,
		"2001:db8::8/128":      whyGateway,
		"2001:db8::9/128":      whyGateway,
		"2001:db8::a/128":      whyGateway,
		"fe80::9/128":          whyLinkLocal,
		"192.0.2.0/32":         whyBroadcast,
		"192.0.2.255/32":       whyBroadcast,
		"198.51.100.64/32":     whyBroadcast,
		"198.51.100.120/32":    whyBroadcast,
		"198.51.100.127/32":    whyBroadcast,
		"192.0.2.100/32":       "", // a neighbour
		"198.51.100.9/32":      "",
		"198.51.100.200/32":    "", // behind a gateway
		"203.0.113.20/32":      "", // caught by a proxy's route
		"2001:db8::b/128":      "",
		"2001:db8:1::1/128":    "",
		"2001:db8:3::/64":      "",
		"::ffff:192.0.2.1/128": whyGateway,
	} {
		if got := why(g, ban); got != want {
			t.Errorf("%s is spared as %q, want %q", ban, got, want)
		}
	}
	if got := why(g, "2001:db8::/64"); got == "" {
		t.Error("a prefix that holds own addresses and gateways may be banned")
	}
	for _, e := range *g.parts[fromHost].Load() {
		if other, fixed := fixedSet.overlapping(e.Prefix); fixed {
			t.Errorf("%v (%s) is kept, although %v is spared on all hosts", e.Prefix, e.Why, other.Prefix)
		}
	}
}

func TestRunFollowsTheHost(t *testing.T) {
	_, target := nettest.NewPair(t)
	g := runGuard(t, target, Config{})
	steps := []struct{ command, ban, want string }{
		{"address add 192.0.2.77/24 dev eth0", "192.0.2.77/32", whyOwn},
		{"address delete 192.0.2.77/24 dev eth0", "192.0.2.77/32", ""},
		{"address add 2001:db8::77/64 dev eth0", "2001:db8::77/128", whyOwn}, // tentative at first
		{"address change 2001:db8::77/64 dev eth0 preferred_lft 0", "2001:db8::77/128", whyOwn},
		{"address delete 2001:db8::77/64 dev eth0", "2001:db8::77/128", ""},
		{"route add default via 192.0.2.1", "192.0.2.1/32", whyGateway},
		{"route replace default via 192.0.2.3", "192.0.2.3/32", whyGateway},
		{"route delete default", "192.0.2.3/32", ""},
		{"route add 203.0.113.0/24 nexthop via 192.0.2.4 nexthop via 192.0.2.5", "192.0.2.5/32", whyGateway},
		{"route delete 203.0.113.0/24", "192.0.2.5/32", ""},
		{"-6 route add default via 2001:db8::6 table 77", "2001:db8::6/128", whyGateway},
		{"-6 route delete default table 77", "2001:db8::6/128", ""},
		{"nexthop add id 9 via 192.0.2.9 dev eth0", "192.0.2.9/32", whyGateway},
		{"nexthop delete id 9", "192.0.2.9/32", ""},
		{"link add wire9 type veth peer name wire10", "192.0.2.99/32", ""},
		{"address add 192.0.2.99/32 dev wire9", "192.0.2.99/32", whyOwn}, // while it is down
		{"link delete wire9", "192.0.2.99/32", ""},
	}
	for _, step := range steps {
		target.Run(t, "ip", strings.Fields(step.command)...)
		eventually(t, g, step.ban, step.want)
	}
	if got := why(g, "192.0.2.2/32"); got != whyOwn {
		t.Errorf("after all changes the first address is spared as %q", got)
	}
}

// TestManyChanges makes more changes at a time than there is room for notices.
func TestManyChanges(t *testing.T) {
	_, target := nettest.NewPair(t)
	g, logged := watchHost(t, target, Config{})
	if err := g.host.notices.SetReadBuffer(1); err != nil { // the least that there is
		t.Fatal(err)
	}
	target.Run(t, "sh", "-c", "for i in $(seq 10 209); do echo address add 192.0.2.$i/24 dev eth0; done | ip -batch -")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	for i := 10; i <= 209; i++ {
		eventually(t, g, fmt.Sprintf("192.0.2.%d/32", i), whyOwn)
	}
	target.Run(t, "ip", "address", "add", "203.0.113.1/24", "dev", "eth0")
	eventually(t, g, "203.0.113.1/32", whyOwn)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, e := range logged.AllEntries() {
		if e.Level <= logrus.WarnLevel {
			t.Errorf("warned of lost notices: %s, %v", e.Message, e.Data)
		}
	}
}

// TestKernelFailsLater has the kernel refuse what was allowed at the start.
func TestKernelFailsLater(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	target.Listen(t, "tcp", 22)
	dialFrom(t, scanner, netip.AddrPortFrom(target.IPv4, 22))
	g, logged := watchHost(t, target, Config{})
	const noSuchFamily = 1000
	for _, d := range []*dumper{g.host.tables, g.sessions.sockets} {
		if err := d.close(); err != nil {
			t.Fatal(err)
		}
		d.family = noSuchFamily
	}
	hostErr, sessionsErr := g.readHost(), g.readSessions()
	g.coped(fromHost, hostErr)
	g.coped(fromSessions, sessionsErr)
	for _, err := range []error{hostErr, sessionsErr} {
		if !errors.Is(err, unix.EPROTONOSUPPORT) {
			t.Errorf("error %v", err)
		}
	}
	if n := len(slices.DeleteFunc(logged.AllEntries(), func(e *logrus.Entry) bool { return e.Level > logrus.WarnLevel })); n != 2 {
		t.Errorf("%d warnings, want 2", n)
	}
	if got := why(g, "192.0.2.2/32"); got != whyOwn {
		t.Errorf("own address is spared as %q", got)
	}
	if got := why(g, "192.0.2.1/32"); got != whySession {
		t.Errorf("the peer is spared as %q", got)
	}
}

// TestDumperRecovers has a dump fail, after which answers may be left in the
// socket.
func TestDumperRecovers(t *testing.T) {
	_, target := nettest.NewPair(t)
	g, _ := watchHost(t, target, Config{})
	target.Do(t, func() { // opens another socket
		if err := g.host.tables.dump(0xffff, nil, 0, nil); err == nil {
			t.Error("a dump of nothing succeeded")
		}
		if g.host.tables.conn != nil {
			t.Error("the socket stays in use")
		}
		target.Run(t, "ip", "address", "add", "192.0.2.77/24", "dev", "eth0")
		if err := g.readHost(); err != nil {
			t.Fatal(err)
		}
	})
	if got := why(g, "192.0.2.77/32"); got != whyOwn {
		t.Errorf("then a new address is spared as %q", got)
	}
}

// TestWatchFails has Watch run out of descriptors at each point it can.
func TestWatchFails(t *testing.T) {
	_, target := nettest.NewPair(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	got := target.Run(t, "env", roleVariable+"=starved", self)
	var failures int
	if _, err := fmt.Sscanf(got, "failures: %d own address: own address", &failures); err != nil || failures < 3 {
		t.Errorf("it says %q (%v), want three failures at least and then a guard", got, err)
	}
}

func TestRunFollowsResolvConf(t *testing.T) {
	_, target := nettest.NewPair(t)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := write(path, "nameserver 203.0.113.53\n")(); err != nil {
		t.Fatal(err)
	}
	g := runGuard(t, target, Config{ResolvConf: []string{path}})
	if got := why(g, "203.0.113.53/32"); got != whyResolver {
		t.Errorf("at the start the resolver is spared as %q", got)
	}
	if err := write(path, "nameserver 2001:db8:53::1\n")(); err != nil {
		t.Fatal(err)
	}
	eventually(t, g, "2001:db8:53::/64", whyResolver)
	eventually(t, g, "203.0.113.53/32", "")
}

// dialFrom connects to a service until the connection is closed or the test
// ends.
func dialFrom(t testing.TB, host *nettest.Host, to netip.AddrPort) net.Conn {
	t.Helper()
	var conn net.Conn
	host.Do(t, func() {
		var err error
		if conn, err = net.Dial("tcp", to.String()); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestRunFollowsSessions(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	target.Listen(t, "tcp", 22) // dual-stack, so IPv4 peers are mapped ones
	g := runGuard(t, target, Config{})
	first := dialFrom(t, scanner, netip.AddrPortFrom(target.IPv4, 22))
	dialFrom(t, scanner, netip.AddrPortFrom(target.IPv6, 22))
	eventually(t, g, "192.0.2.1/32", whySession)
	eventually(t, g, "2001:db8::1/128", whySession)
	first.Close()
	eventually(t, g, "192.0.2.1/32", "")
}

func TestSessionsAreInboundAndOnSSHPorts(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	target.Listen(t, "tcp", 22)
	target.Listen(t, "tcp", 2222)
	target.Listen(t, "tcp", 80)
	scanner.Listen(t, "tcp", 22)
	dialFrom(t, scanner, netip.AddrPortFrom(target.IPv6, 22))
	dialFrom(t, scanner, netip.AddrPortFrom(target.IPv4, 2222))
	dialFrom(t, scanner, netip.AddrPortFrom(target.IPv4, 80))
	dialFrom(t, target, netip.AddrPortFrom(scanner.IPv4, 22)) // outbound
	trap := detector.NewPortSet(detector.PortRange{First: 2222, Last: 2222})
	tests := map[string]struct {
		config   Config
		on22     string // why the peer on port 22 is spared
		on2222   string
		wantPort string
	}{
		"nothing said":      {Config{}, whySession, "", "22"},
		"another":           {Config{SSHPorts: []uint16{2222}}, "", whySession, "2222"},
		"both":              {Config{SSHPorts: []uint16{2222, 22, 2222}}, whySession, whySession, "22,2222"},
		"one is a trap":     {Config{SSHPorts: []uint16{22, 2222}, Traps: trap}, whySession, "", "22"},
		"the one is a trap": {Config{SSHPorts: []uint16{2222}, Traps: trap}, "", "", ""},
	}
	g, _ := watchHost(t, target, Config{})
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			g.Configure(tt.config)
			if err := g.readSessions(); err != nil {
				t.Fatal(err)
			}
			if got := portList(g.sessions.ports); got != tt.wantPort {
				t.Errorf("ports %s, want %s", got, tt.wantPort)
			}
			if got := why(g, "2001:db8::1/128"); got != tt.on22 {
				t.Errorf("the peer on port 22 is spared as %q, want %q", got, tt.on22)
			}
			if got := why(g, "192.0.2.1/32"); got != tt.on2222 {
				t.Errorf("the peer on port 2222 is spared as %q, want %q", got, tt.on2222)
			}
		})
	}
}

// TestSSHServersAreFound runs programs named sshd.
func TestSSHServersAreFound(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := func(t *testing.T, host *nettest.Host, name, address string, wrapper ...string) {
		path := filepath.Join(t.TempDir(), name)
		if err := os.Symlink(self, path); err != nil {
			t.Fatal(err)
		}
		args := append([]string{roleVariable + "=" + address}, append(wrapper, path)...)
		host.Start(t, "env", args...).Stdout.WaitLine(t, "listening")
	}
	tests := map[string]struct {
		name, address string
		config        Config
		want          string
	}{
		"sshd":                {"sshd", ":2222", Config{}, "2222"},
		"dropbear":            {"dropbear", "192.0.2.2:2222", Config{}, "2222"},
		"another program":     {"httpd", ":2222", Config{}, "22"},
		"forwarded by root":   {"sshd", "127.0.0.1:2222", Config{}, "22"},
		"and one by hand":     {"sshd", ":2222", Config{SSHPorts: []uint16{443}}, "443,2222"},
		"the same by hand":    {"sshd", ":2222", Config{SSHPorts: []uint16{2222}}, "2222"},
		"all are traps":       {"sshd", ":2222", Config{Traps: detector.NewPortSet(detector.PortRange{First: 1, Last: 65535})}, "2222"},
		"the default is trap": {"httpd", ":2222", Config{Traps: detector.NewPortSet(detector.PortRange{First: 22, Last: 22})}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			scanner, target := nettest.NewPair(t)
			run(t, target, tt.name, tt.address)
			run(t, scanner, "sshd", ":2223") // on another host
			g, _ := watchHost(t, target, tt.config)
			if got := portList(g.sessions.ports); got != tt.want {
				t.Errorf("ports %s, want %s", got, tt.want)
			}
		})
	}
	t.Run("a user's program", func(t *testing.T) {
		_, target := nettest.NewPair(t)
		run(t, target, "sshd", ":2222", "setpriv", "--reuid=65534", "--clear-groups")
		g, _ := watchHost(t, target, Config{})
		if got, want := portList(g.sessions.ports), "22"; got != want {
			t.Errorf("ports %s, want %s", got, want)
		}
	})
}

func portList(ports []uint16) string {
	texts := make([]string, len(ports))
	for i, port := range ports {
		texts[i] = strconv.Itoa(int(port))
	}
	return strings.Join(texts, ",")
}
