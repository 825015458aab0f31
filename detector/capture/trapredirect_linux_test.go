package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

var allPorts = detector.NewPortSet(detector.PortRange{First: 1, Last: 65535})

// trapDesigns are port lists for which traps are held in different ways.
var trapDesigns = map[string]detector.PortSet{"a socket each": trapPorts, "redirected": allPorts}

func trapAllPorts(t testing.TB, host *nettest.Host) *trapping {
	t.Helper()
	return startTrapping(t, host, TrapConfig{TCP: allPorts, UDP: allPorts, Banner: []byte(testBanner)})
}

func TestScanOfAllPortsIsReported(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	s := trapAllPorts(t, target)
	ports := []uint16{1, 22, 1023, 12345, 32768, 61000, 65535}
	list := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(ports)), ","), "[]")
	for family, args := range map[string][]string{"IPv4": {target.IPv4.String()}, "IPv6": {"-6", target.IPv6.String()}} {
		t.Run(family, func(t *testing.T) {
			scanner.Run(t, "nmap", append([]string{"-sT", "-n", "-Pn", "-p", list}, args...)...)
			left := make(map[uint16]bool)
			for _, port := range ports {
				left[port] = true
			}
			for len(left) > 0 {
				p := s.next(t) // nmap may try a port twice
				if want := netip.MustParseAddr(args[len(args)-1]); p.Target.Addr() != want || p.Proto != detector.TCP {
					t.Errorf("probe of %v over %v, want of %v", p.Target, p.Proto, want)
				}
				delete(left, p.Target.Port())
			}
		})
	}
}

func TestRedirectedTrapsTakeFewDescriptors(t *testing.T) {
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	_, target := nettest.NewPair(t)
	before := descriptors()
	traps := openTraps(t, target, TrapConfig{TCP: allPorts, UDP: allPorts})
	if n := descriptors() - before; n > 10 {
		t.Errorf("%d descriptors, want 10 at most", n)
	}
	if tcp, udp := traps.Ports(); tcp.Len() != 65535 || udp.Len() != 65535 || len(traps.Refused()) != 0 {
		t.Errorf("%d TCP and %d UDP ports and %d refused, want all and none", tcp.Len(), udp.Len(), len(traps.Refused()))
	}
	if err := traps.Close(); err != nil {
		t.Error(err)
	}
	if n := descriptors() - before; n != 0 {
		t.Errorf("%d descriptors are left", n)
	}
	if rules := target.Run(t, "nft", "list", "ruleset"); rules != "" {
		t.Errorf("rules are left:\n%s", rules)
	}
}

// A service wins, whenever it starts and whatever address it has.
func TestServicesKeepRedirectedPorts(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	both := []netip.Addr{target.IPv4, target.IPv6}
	type service struct {
		network, address string
		port             uint16
		of               []netip.Addr
	}
	before := map[string]service{
		"TCP":                         {"tcp", ":80", 80, both},
		"UDP":                         {"udp", ":53", 53, both},
		"transparent proxy":           {"tcp", ":3128", 3128, both},
		"TCP on one address":          {"tcp", "192.0.2.2:81", 81, both[:1]},
		"UDP on one address":          {"udp", "[2001:db8::2]:54", 54, both[1:]},
		"TCP in the range of clients": {"tcp", ":40000", 40000, both},
	}
	after := map[string]service{
		"TCP":                {"tcp", ":8080", 8080, both},
		"UDP":                {"udp", ":5353", 5353, both},
		"TCP on one address": {"tcp", "[2001:db8::2]:8081", 8081, both[1:]},
		"UDP on one address": {"udp", "192.0.2.2:5354", 5354, both[:1]},
	}
	opened := make(map[string]io.Closer)
	for name, service := range before {
		opened["before: "+name] = openService(t, target, name, service.network, service.address)
	}
	s := trapAllPorts(t, target)
	for name, service := range after {
		opened["after: "+name] = openService(t, target, name, service.network, service.address)
	}
	for when, services := range map[string]map[string]service{"before": before, "after": after} {
		for name, service := range services {
			t.Run(when+": "+name, func(t *testing.T) {
				for _, addr := range service.of {
					c := dial(t, scanner, service.network, addr, service.port)
					send(t, c, "request")
					expectService(t, opened[when+": "+name], localPort(t, c))
				}
			})
		}
	}
	expectNoProbeBefore(t, s, scanner, netip.AddrPortFrom(target.IPv4, 9))

	t.Run("other addresses are traps", func(t *testing.T) {
		dial(t, scanner, "tcp", target.IPv6, 81)
		if p := s.next(t); p.Target != netip.AddrPortFrom(target.IPv6, 81) {
			t.Errorf("probe of %v, want the address that the service does not have", p.Target)
		}
	})
	t.Run("ports are traps when services end", func(t *testing.T) {
		opened["before: TCP"].Close()
		nettest.WaitFor(t, "the service has ended", func() bool { // a process being started may have its socket for a moment
			return target.Run(t, "ss", "-tlnH", "sport", "=", ":80") == ""
		})
		dial(t, scanner, "tcp", target.IPv4, 80)
		if p := s.next(t); p.Target != netip.AddrPortFrom(target.IPv4, 80) {
			t.Errorf("probe of %v, want the port that the service had", p.Target)
		}
	})
}

// openService is like [nettest.Host.Listen], with a name and any address.
func openService(t testing.TB, host *nettest.Host, name, network, address string) (service io.Closer) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if failed := raw.Control(func(fd uintptr) {
			if strings.Contains(name, "transparent") {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			}
		}); failed != nil {
			return failed
		}
		return err
	}}
	var err error
	host.Do(t, func() {
		if network == "tcp" {
			service, err = config.Listen(t.Context(), network, address)
		} else {
			service, err = config.ListenPacket(t.Context(), network, address)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { service.Close() })
	return service
}

// expectService takes the next connection or datagram, which must come from a
// port of the client's.
func expectService(t testing.TB, service io.Closer, client uint16) {
	t.Helper()
	var from net.Addr
	switch service := service.(type) {
	case *net.TCPListener:
		if err := service.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		c, err := service.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		from = c.RemoteAddr()
	case *net.UDPConn:
		if err := service.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		var err error
		if _, from, err = service.ReadFrom(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	if got := netip.MustParseAddrPort(from.String()).Port(); got != client {
		t.Errorf("the service heard from port %d, want %d", got, client)
	}
}

// expectNoProbeBefore probes a trap, which must be the first probe to be seen.
func expectNoProbeBefore(t testing.TB, s *trapping, scanner *nettest.Host, trap netip.AddrPort) {
	t.Helper()
	dial(t, scanner, "tcp", trap.Addr(), trap.Port())
	if p := s.next(t); p.Target != trap {
		t.Errorf("probe %v %v -> %v, want none but that of %v", p.Proto, p.Source, p.Target, trap)
	}
}

func TestClientsOfAHostWithAllPortsTrapped(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	web := scanner.Listen(t, "tcp", 80)
	resolver := scanner.Listen(t, "udp", 53).(*net.UDPConn)
	s := trapAllPorts(t, target)

	t.Run("TCP", func(t *testing.T) {
		for _, addr := range []netip.Addr{scanner.IPv4, scanner.IPv6} {
			c := dial(t, target, "tcp", addr, 80)
			expectService(t, web, localPort(t, c))
		}
	})
	for name, connected := range map[string]bool{"UDP, connected": true, "UDP, not connected": false} {
		t.Run(name, func(t *testing.T) {
			for _, addr := range []netip.Addr{scanner.IPv4, scanner.IPv6} {
				client := askResolver(t, target, netip.AddrPortFrom(addr, 53), connected)
				asker := nextDatagram(t, resolver)
				replyTo(t, resolver, asker)
				if got := nextDatagram(t, client); got.Port() != 53 {
					t.Errorf("an answer from %v, want from port 53", got)
				}
			}
		})
	}
	t.Run("an answer that comes too late is no probe", func(t *testing.T) {
		client := askResolver(t, target, netip.AddrPortFrom(scanner.IPv4, 53), true)
		asker := nextDatagram(t, resolver)
		client.Close()
		replyTo(t, resolver, asker)
	})
	t.Run("the host's own connections are refused as if there were no traps", func(t *testing.T) {
		target.Do(t, func() {
			for _, to := range []string{"127.0.0.1:6379", "[::1]:6379", "192.0.2.2:6379"} {
				if c, err := net.Dial("tcp", to); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("dial %s: %v, %v; want connection refused", to, c, err)
				}
			}
		})
	})
	expectNoProbeBefore(t, s, scanner, netip.AddrPortFrom(target.IPv4, 9))
}

// askResolver sends a datagram from host and returns the socket that waits for
// the answer.
func askResolver(t testing.TB, host *nettest.Host, resolver netip.AddrPort, connected bool) (client *net.UDPConn) {
	t.Helper()
	to := net.UDPAddrFromAddrPort(resolver)
	var err error
	host.Do(t, func() {
		if connected {
			client, err = net.DialUDP("udp", nil, to)
		} else {
			client, err = net.ListenUDP("udp", nil)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if connected {
		_, err = client.Write([]byte("question"))
	} else {
		_, err = client.WriteTo([]byte("question"), to)
	}
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func nextDatagram(t testing.TB, c *net.UDPConn) netip.AddrPort {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, from, err := c.ReadFromUDPAddrPort(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	return from
}

func replyTo(t testing.TB, c *net.UDPConn, to netip.AddrPort) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte("answer"), to); err != nil {
		t.Fatal(err)
	}
}

// A banner is no question, so what answers it, or repeats the probe, is reported.
func TestBannersDoNotHideProbes(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	s := trapAllPorts(t, target)
	c := dial(t, scanner, "udp", target.IPv4, 7)
	send(t, c, "probe")
	if n, err := c.Read(make([]byte, 100)); err != nil || n != len(testBanner) {
		t.Errorf("received %d bytes (%v), want the banner", n, err)
	}
	send(t, c, "probe")
	for range 2 {
		if p := s.next(t); p.Target.Port() != 7 {
			t.Errorf("probe of %v, want port 7", p.Target)
		}
	}
}

// A trap that closes first is in TIME_WAIT, and must be there for the same peer
// again, while a service in TIME_WAIT keeps its peer.
func TestRedirectedPortsInTimeWait(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	web := target.Listen(t, "tcp", 80).(*net.TCPListener)
	s := startTrapping(t, target, TrapConfig{TCP: allPorts})
	again := func(port uint16) {
		t.Helper()
		c := dialFrom(t, scanner, 50000, netip.AddrPortFrom(target.IPv4, port))
		if port == 80 {
			expectService(t, web, 50000)
		}
		if _, err := io.ReadAll(c); err != nil { // the target closes first
			t.Fatal(err)
		}
		c.Close()
		nettest.WaitFor(t, "the connection is in TIME_WAIT", func() bool {
			return strings.Contains(target.Run(t, "ss", "-tanH", "state", "time-wait"), fmt.Sprintf(":%d ", port))
		})
	}
	for range 2 {
		again(81)
		if p := s.next(t); p.Target.Port() != 81 {
			t.Errorf("probe of %v, want port 81", p.Target)
		}
		again(80)
	}
	expectNoProbeBefore(t, s, scanner, netip.AddrPortFrom(target.IPv4, 9))
}

func dialFrom(t testing.TB, host *nettest.Host, port int, to netip.AddrPort) (c net.Conn) {
	t.Helper()
	dialer := net.Dialer{
		Timeout: patience, LocalAddr: &net.TCPAddr{Port: port},
		Control: func(_, _ string, raw syscall.RawConn) (err error) {
			if failed := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			}); failed != nil {
				return failed
			}
			return err
		},
	}
	var err error
	host.Do(t, func() { c, err = dialer.Dial("tcp4", to.String()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// In a flood of SYNs the kernel keeps nothing of a connection until it is made.
func TestRedirectedConnectionsBySYNCookies(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	target.Run(t, "sysctl", "-qw", "net.ipv4.tcp_syncookies=2")
	s := trapAllPorts(t, target)
	for _, addr := range []netip.Addr{target.IPv4, target.IPv6} {
		expectNoProbeBefore(t, s, scanner, netip.AddrPortFrom(addr, 4711))
	}
}

func TestRedirectionOutlivesAFlushOfTheFirewall(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	s := trapAllPorts(t, target)
	target.Run(t, "nft", "flush", "ruleset")
	expectNoProbeBefore(t, s, scanner, netip.AddrPortFrom(target.IPv4, 4711))
}

// The target is a router here, and the way back is to the scanner.
func TestForwardedTrafficPassesTraps(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	const beyond = "198.51.100.7"
	scanner.Run(t, "ip", "address", "add", beyond+"/32", "dev", "lo")
	target.Run(t, "ip", "route", "add", beyond+"/32", "via", scanner.IPv4.String())
	target.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	server := scanner.Listen(t, "udp", 4711).(*net.UDPConn)
	s := trapAllPorts(t, target)

	ip := ip4(layers.IPProtocolUDP)
	ip.SrcIP, ip.DstIP = net.IPv4(192, 0, 2, 9), net.ParseIP(beyond)
	udp := &layers.UDP{SrcPort: 40000, DstPort: 4711}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	newInjector(t, scanner, target).send(t, serialize(t, ip, udp))
	if from := nextDatagram(t, server); from.Port() != 40000 {
		t.Errorf("a datagram from %v, want from port 40000", from)
	}
	expectNoProbeBefore(t, s, scanner, netip.AddrPortFrom(target.IPv4, 9))
}

// PortSentry 1.2 runs one process for TCP and one for UDP.
func TestTwoCanRedirect(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	tcp := startTrapping(t, target, TrapConfig{TCP: allPorts})
	udp := startTrapping(t, target, TrapConfig{UDP: allPorts, Banner: []byte(testBanner)})
	for network, s := range map[string]*trapping{"tcp": tcp, "udp": udp} {
		send(t, dial(t, scanner, network, target.IPv4, 99), "hello")
		if p := s.next(t); p.Target.Port() != 99 {
			t.Errorf("%s: probe of %v, want port 99", network, p.Target)
		}
	}
}

// holdVariable tells TestTrapsEndWithTheirProcess to be that process, and to
// trap all ports up to its value.
const holdVariable = "PORTSNARE_TEST_HOLD_TRAPS"

// holdTraps traps ports in a process of its own, with a limit on descriptors
// and perhaps behind a command that takes privileges from it.
func holdTraps(t testing.TB, host *nettest.Host, last uint16, limit int, behind ...string) *nettest.Process {
	t.Helper()
	args := slices.Concat(
		[]string{"-c", `ulimit -n "$0" && exec "$@"`, fmt.Sprint(limit)}, behind,
		[]string{"env", fmt.Sprintf("%s=%d", holdVariable, last), os.Args[0], "-test.run=^TestTrapsEndWithTheirProcess$"})
	return host.Start(t, "sh", args...)
}

func holdTrapsHere(t testing.TB, last string) {
	t.Helper()
	n, err := strconv.ParseUint(last, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	ports := detector.NewPortSet(detector.PortRange{First: 1, Last: uint16(n)})
	traps, err := OpenTraps(TrapConfig{
		TCP: ports, UDP: ports, Banner: []byte(testBanner), Log: logrus.NewEntry(logrus.New()),
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	t.Fatal(Trap(context.Background(), traps, func(detector.Probe) detector.Decision {
		return detector.Decision{Banner: true}
	}))
}

func expectBanner(t testing.TB, scanner, target *nettest.Host) {
	t.Helper()
	c := dial(t, scanner, "tcp", target.IPv4, 99)
	if got, err := io.ReadAll(c); err != nil || string(got) != testBanner {
		t.Errorf("received %q (%v), want the banner", got, err)
	}
}

func TestTrapsEndWithTheirProcess(t *testing.T) {
	if last := os.Getenv(holdVariable); last != "" {
		holdTrapsHere(t, last)
	}
	for name, tt := range map[string]struct {
		last  uint16
		limit int
	}{
		"all ports":                            {65535, 1024},
		"few ports, and fewer descriptors yet": {100, 600},
	} {
		t.Run(name, func(t *testing.T) {
			scanner, target := nettest.NewPair(t)
			holder := holdTraps(t, target, tt.last, tt.limit)
			holder.Stdout.WaitLine(t, "ready")
			expectBanner(t, scanner, target)
			holder.Signal(t, syscall.SIGKILL)
			if err := holder.Wait(t); err == nil {
				t.Error("the process ended by itself")
			}
			nettest.WaitFor(t, "the rules are gone", func() bool { return target.Run(t, "nft", "list", "ruleset") == "" })
			scanner.Do(t, func() {
				if c, err := net.Dial("tcp", netip.AddrPortFrom(target.IPv4, 99).String()); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("dial: %v, %v; want connection refused", c, err)
				}
			})
		})
	}
}

func TestTrapsWithoutTheFirewall(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	powerless := []string{"setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"}
	t.Run("have a socket each", func(t *testing.T) {
		holder := holdTraps(t, target, maxTrapSockets/2+1, 8192, powerless...)
		holder.Stdout.WaitLine(t, "ready")
		expectBanner(t, scanner, target)
		if said := holder.Stderr.String(); !strings.Contains(said, "trap ports have a socket each") {
			t.Errorf("it says %q, want a warning", said)
		}
	})
	t.Run("need descriptors", func(t *testing.T) {
		holder := holdTraps(t, target, 65535, 8192, powerless...)
		if err := holder.Wait(t); err == nil {
			t.Error("it ended well")
		}
		for _, want := range []string{"operation not permitted", "CAP_NET_ADMIN", "LimitNOFILE=131582"} {
			if said := holder.Stdout.String(); !strings.Contains(said, want) {
				t.Errorf("it says %q, want %q in it", said, want)
			}
		}
	})
}
