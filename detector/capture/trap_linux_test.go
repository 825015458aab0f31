package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

// A trapping is a running Trap on a test host.
type trapping struct {
	*Traps
	*observing
}

var trapPorts = detector.NewPortSet(detector.PortRange{First: 11, Last: 12})

const testBanner = "Go away.\r\n"

// startTrapping traps on host until the test ends. Everyone may have the banner.
func startTrapping(t testing.TB, host *nettest.Host, cfg TrapConfig) *trapping {
	t.Helper()
	return serveTraps(t, openTraps(t, host, cfg))
}

func openTraps(t testing.TB, host *nettest.Host, cfg TrapConfig) *Traps {
	t.Helper()
	var traps *Traps
	var err error
	host.Do(t, func() { traps, err = OpenTraps(cfg) })
	if err != nil {
		t.Fatal(err)
	}
	return traps
}

func serveTraps(t testing.TB, traps *Traps) *trapping {
	t.Helper()
	s := &trapping{Traps: traps}
	s.observing = observeInBackground(detector.Decision{Banner: true}, func(ctx context.Context, observe Observer) error {
		return Trap(ctx, s.Traps, observe)
	})
	t.Cleanup(func() {
		s.cancel()
		if err := s.wait(t); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Errorf("Trap: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// dial opens a connection, or a connected UDP socket, from host.
func dial(t testing.TB, host *nettest.Host, network string, to netip.Addr, port uint16) net.Conn {
	t.Helper()
	var conn net.Conn
	var err error
	host.Do(t, func() {
		fd, domain := unix.SOCK_STREAM, unix.AF_INET6
		if network == "udp" {
			fd = unix.SOCK_DGRAM
		}
		var address unix.Sockaddr = &unix.SockaddrInet6{Addr: to.As16(), Port: int(port), ZoneId: zoneIndex(t, to)}
		if to.Is4() {
			domain, address = unix.AF_INET, &unix.SockaddrInet4{Addr: to.As4(), Port: int(port)}
		}
		if fd, err = unix.Socket(domain, fd|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		file := os.NewFile(uintptr(fd), "client")
		defer file.Close()
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
			return
		}
		if err = unix.Connect(fd, address); err == nil {
			conn, err = net.FileConn(file)
		}
	})
	if err != nil {
		t.Fatalf("dial %s %v port %d: %v", network, to, port, err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func zoneIndex(t testing.TB, addr netip.Addr) uint32 {
	t.Helper()
	if addr.Zone() == "" {
		return 0
	}
	i, err := net.InterfaceByName(addr.Zone())
	if err != nil {
		t.Fatal(err)
	}
	return uint32(i.Index)
}

func send(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func TestTrapObservesWhoConnects(t *testing.T) {
	t.Parallel()
	for design, ports := range trapDesigns {
		t.Run(design, func(t *testing.T) {
			t.Parallel()
			scanner, target := nettest.NewPair(t)
			s := startTrapping(t, target, TrapConfig{TCP: ports, UDP: ports})
			for family, a := range map[string]struct{ source, target netip.Addr }{
				"IPv4":       {scanner.IPv4, target.IPv4},
				"IPv6":       {scanner.IPv6, target.IPv6},
				"link-local": {scanner.LinkLocal.WithZone("eth0"), target.LinkLocal.WithZone("eth0")},
			} {
				t.Run("TCP over "+family, func(t *testing.T) {
					expectConnect(t, s, scanner, detector.Probe{
						Source: netip.AddrPortFrom(a.source, 0), Target: netip.AddrPortFrom(a.target, 12),
						Proto: detector.TCP, Technique: detector.TechniqueConnect, Proof: detector.ProofHandshake,
					})
				})
				t.Run("UDP over "+family, func(t *testing.T) {
					expectConnect(t, s, scanner, detector.Probe{
						Source: netip.AddrPortFrom(a.source, 0), Target: netip.AddrPortFrom(a.target, 12),
						Proto: detector.UDP, Technique: detector.TechniqueConnect,
					})
				})
			}
		})
	}
}

// expectConnect makes the probe that it wants to see, from a port that the
// scanner chooses.
func expectConnect(t testing.TB, s *trapping, scanner *nettest.Host, want detector.Probe) {
	t.Helper()
	began := time.Now()
	c := dial(t, scanner, strings.ToLower(want.Proto.String()), want.Target.Addr(), want.Target.Port())
	send(t, c, "hello")
	got := s.next(t)
	want.Source = netip.AddrPortFrom(want.Source.Addr(), localPort(t, c))
	if diff := diffProbes(want, got); diff != "" {
		t.Errorf("probe (-want +got):\n%s", diff)
	}
	if got.At.Before(began) || got.At.After(time.Now()) {
		t.Errorf("probe at %v, want a time since %v", got.At, began)
	}
}

func localPort(t testing.TB, c net.Conn) uint16 {
	t.Helper()
	addr, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return addr.Port()
}

func TestTrapSendsTheBanner(t *testing.T) {
	t.Parallel()
	for design, ports := range trapDesigns {
		t.Run(design, func(t *testing.T) {
			t.Parallel()
			scanner, target := nettest.NewPair(t)
			startTrapping(t, target, TrapConfig{TCP: ports, UDP: ports, Banner: []byte(testBanner)})
			for name, to := range map[string]netip.Addr{
				"IPv4": target.IPv4, "IPv6": target.IPv6, "link-local": target.LinkLocal.WithZone("eth0"),
			} {
				t.Run("TCP over "+name, func(t *testing.T) {
					c := dial(t, scanner, "tcp", to, 11)
					send(t, c, strings.Repeat("GET / ", 1000)) // must not cost the banner
					if got, err := io.ReadAll(c); err != nil || string(got) != testBanner {
						t.Errorf("received %q (%v), want the banner and the end", got, err)
					}
				})
				t.Run("UDP over "+name, func(t *testing.T) {
					c := dial(t, scanner, "udp", to, 11) // connected, so it takes none from elsewhere
					send(t, c, "")
					got := make([]byte, 100)
					if n, err := c.Read(got); err != nil || string(got[:n]) != testBanner {
						t.Errorf("received %q (%v), want the banner", got[:n], err)
					}
				})
			}
		})
	}
}

// A reset would discard the banner on systems other than Linux.
func TestTrapDoesNotResetWhoKeepsSending(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	startTrapping(t, target, TrapConfig{TCP: trapPorts, Banner: []byte(testBanner)})
	c := dial(t, scanner, "tcp", target.IPv4, 11).(*net.TCPConn)
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
	send(t, c, "more")
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fault := 0
	nettest.WaitFor(t, "what was sent is acknowledged or reset", func() bool {
		waiting := -1
		if err := raw.Control(func(fd uintptr) {
			waiting, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
			fault, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		}); err != nil {
			t.Fatal(err)
		}
		return waiting == 0 || fault != 0
	})
	if fault != 0 {
		t.Errorf("the trap answered with a reset: %v", syscall.Errno(fault))
	}
}

// Where the kernel has no IPv6, traps are IPv4 sockets.
func TestTrapSocketWithoutIPv6(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	var fd int
	var err error
	target.Do(t, func() { fd, err = bindTrap(unix.AF_INET, detector.UDP, 11) })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	c := dial(t, scanner, "udp", target.IPv4, 11)
	send(t, c, "hello")
	data, control := make([]byte, 100), make([]byte, 256)
	nettest.WaitFor(t, "the datagram arrives", func() bool {
		n, controlLen, _, peer, err := unix.Recvmsg(fd, data, control, 0)
		if err != nil {
			return false
		}
		info, ok := parsePacketInfo(control[:controlLen])
		source := netip.AddrPortFrom(scanner.IPv4, localPort(t, c))
		if got := addrPort(peer, fd); !ok || n != 5 || got != source || info.addr != target.IPv4 || info.many {
			t.Errorf("received %d bytes from %v, %+v, %v; want 5 from %v to %v", n, got, info, ok, source, target.IPv4)
		}
		return true
	})
}

func TestTrapDoesNotSeeHalfOpenScans(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	s := startTrapping(t, target, TrapConfig{TCP: trapPorts})
	scanner.Run(t, "nmap", "-sS", "-n", "-Pn", "-p", "11,12", target.IPv4.String())
	c := dial(t, scanner, "tcp", target.IPv4, 11)
	if got := s.next(t).Source.Port(); got != localPort(t, c) || s.Stats().Accepted != 1 {
		t.Errorf("probe from port %d, %+v; want only the connection from %d", got, s.Stats(), localPort(t, c))
	}
}

func TestTrapPassesOverBroadcasts(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	s := startTrapping(t, target, TrapConfig{UDP: trapPorts, Banner: []byte(testBanner)})
	send(t, dial(t, scanner, "udp", netip.MustParseAddr("192.0.2.255"), 11), "hello")
	send(t, dial(t, scanner, "udp", target.IPv4, 12), "hello")
	if p := s.next(t); p.Target.Port() != 12 {
		t.Errorf("probe of %v, want none but that of port 12", p.Target)
	}
	if got := s.Stats(); got.SentToMany != 1 || got.Datagrams != 1 {
		t.Errorf("%+v, want one datagram to many and one to the host", got)
	}
}

func TestSilentPeersHoldNothing(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	s := startTrapping(t, target, TrapConfig{TCP: trapPorts, Banner: []byte(testBanner)})
	const silent = maxLingerers + 44
	for range silent {
		dial(t, scanner, "tcp", target.IPv4, 11)
	}
	last := dial(t, scanner, "tcp", target.IPv4, 12)
	if got, err := io.ReadAll(last); err != nil || string(got) != testBanner {
		t.Errorf("behind %d silent peers: received %q (%v), want the banner", silent, got, err)
	}
	last.Close()
	nettest.WaitFor(t, "all silent peers are gone", func() bool {
		stats := s.Stats()
		return stats.CutShort+stats.BannerTimeouts == silent
	})
	if got := s.Stats(); got.Accepted != silent+1 {
		t.Errorf("%d connections, want %d", got.Accepted, silent+1)
	}
}

func TestAFloodDoesNotHideOtherProbes(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	s := startTrapping(t, target, TrapConfig{TCP: trapPorts, UDP: trapPorts, Banner: []byte(testBanner)})
	flood := dial(t, scanner, "udp", target.IPv4, 11)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_, _ = flood.Write([]byte("flood"))
		}
	}()
	for range 10 {
		c := dial(t, scanner, "tcp", target.IPv4, 12)
		if got, err := io.ReadAll(c); err != nil || string(got) != testBanner {
			t.Errorf("received %q (%v), want the banner", got, err)
		}
		c.Close()
	}
	s.cancel() // in the middle of the flood
	began := time.Now()
	if err := s.wait(t); err != nil || time.Since(began) > time.Second {
		t.Errorf("Trap ended after %v with %v, want at most a second and no error", time.Since(began), err)
	}
	stop()
	<-done
}

func TestTrapCountsLostDatagrams(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	traps := openTraps(t, target, TrapConfig{UDP: trapPorts})
	c := dial(t, scanner, "udp", target.IPv4, 11)
	const unread = 1000
	for range unread {
		send(t, c, "flood")
	}
	serveTraps(t, traps)
	sent := uint64(unread)
	nettest.WaitFor(t, "every datagram is observed or counted as lost", func() bool {
		stats := traps.Stats()
		if stats.Lost > 0 && stats.Datagrams+stats.Lost == sent {
			return true
		}
		send(t, c, "one that tells of those before")
		sent++
		return false
	})
}

func TestTrapEndsWithOpenConnections(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	s := startTrapping(t, target, TrapConfig{TCP: trapPorts, Banner: []byte(testBanner)})
	for range 10 {
		dial(t, scanner, "tcp", target.IPv4, 11)
		s.next(t)
	}
	began := time.Now()
	s.cancel()
	if err := s.wait(t); err != nil || time.Since(began) > time.Second {
		t.Errorf("Trap ended after %v with %v, want at most a second and no error", time.Since(began), err)
	}
}

func TestClosingEndsTrap(t *testing.T) {
	t.Parallel()
	_, target := nettest.NewPair(t)
	s := startTrapping(t, target, TrapConfig{TCP: trapPorts})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.wait(t); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Trap ended with %v, want %v", err, os.ErrClosed)
	}
	if err := Trap(t.Context(), s.Traps, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Trap of closed traps ended with %v, want %v", err, os.ErrClosed)
	}
}

// PortSentry 2.0.7 counts a range that ends at 65535 on to 0, 1, 2 …
func TestTrapRangeEndsAtTheLastPort(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	ports := detector.NewPortSet(detector.PortRange{First: 65530, Last: 65535})
	s := startTrapping(t, target, TrapConfig{TCP: ports, UDP: ports})
	tcp, udp := s.Ports()
	if tcp.String() != "65530-65535" || udp.String() != "65530-65535" {
		t.Errorf("holds TCP %v and UDP %v, want 65530-65535", tcp, udp)
	}
	for _, port := range []uint16{65530, 65535} {
		dial(t, scanner, "tcp", target.IPv4, port)
		if got := s.next(t).Target.Port(); got != port {
			t.Errorf("probe of port %d, want %d", got, port)
		}
	}
}

func TestPortsInUseAreLeftToTheirServices(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	target.Listen(t, "tcp", 11)
	target.Listen(t, "udp", 12)
	s := startTrapping(t, target, TrapConfig{TCP: trapPorts, UDP: trapPorts})
	if tcp, udp := s.Ports(); tcp.String() != "12" || udp.String() != "11" {
		t.Errorf("holds TCP %v and UDP %v, want 12 and 11", tcp, udp)
	}
	want := []string{"TCP 11: address already in use", "UDP 12: address already in use"}
	if got := refusals(s.Refused()); !slices.Equal(got, want) {
		t.Errorf("refused %q, want %q", got, want)
	}
	// A probe of the one behind the other is not taken for it, as in PortSentry 1.2.
	dial(t, scanner, "tcp", target.IPv4, 12)
	if got := s.next(t).Target.Port(); got != 12 {
		t.Errorf("probe of port %d, want 12", got)
	}
}

// refusals returns each port with the kernel's reason.
func refusals(refused []RefusedPort) (all []string) {
	for _, r := range refused {
		var reason syscall.Errno
		errors.As(r.Err, &reason)
		all = append(all, fmt.Sprintf("%v %d: %v", r.Proto, r.Port, reason))
	}
	return all
}

func TestServicesHaveAllTrapPorts(t *testing.T) {
	t.Parallel()
	_, target := nettest.NewPair(t)
	target.Listen(t, "tcp", 11)
	target.Listen(t, "tcp", 12)
	var err error
	target.Do(t, func() { _, err = OpenTraps(TrapConfig{TCP: trapPorts}) })
	var none *NoTrapsError
	if !errors.As(err, &none) {
		t.Fatalf("OpenTraps: %v, want a NoTrapsError", err)
	}
	want := []string{"TCP 11: address already in use", "TCP 12: address already in use"}
	if got := refusals(none.Refused); !slices.Equal(got, want) {
		t.Errorf("refused %q, want %q", got, want)
	}
}

// On Linux no peer can make accept fail at will, so this is told what it would
// have returned.
func TestConnectionsThatVanishAreReported(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that a shortage does not make it rest
	for name, tt := range map[string]struct {
		err  error
		want int
	}{
		"peer went":       {unix.ECONNABORTED, maxAcceptReports},
		"protocol error":  {unix.EPROTO, maxAcceptReports},
		"no descriptors":  {unix.EMFILE, 0},
		"files of others": {unix.ENFILE, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := 0
			s := newTrapServer(&Traps{log: silentLog(), acceptFailed: func(port uint16, err error) {
				got++
				if port != 11 || !errors.Is(err, tt.err) {
					t.Errorf("told of port %d, %v; want 11, %v", port, err, tt.err)
				}
			}}, nil)
			for range 2 * maxAcceptReports {
				s.failedToAccept(ctx, 11, tt.err)
			}
			if failures := s.Stats().AcceptFailures; got != tt.want || failures != 2*maxAcceptReports {
				t.Errorf("told %d times of %d failures, want %d of %d", got, failures, tt.want, 2*maxAcceptReports)
			}
		})
	}
}

func TestRateLimitIsForASecond(t *testing.T) {
	var l rateLimit
	now := time.Now()
	for i, step := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {0, true}, {999 * time.Millisecond, false}, {time.Second, true}, {1500 * time.Millisecond, true}, {1999 * time.Millisecond, false}} {
		if got := l.allow(now.Add(step.after), 2); got != step.want {
			t.Errorf("step %d, after %v: allow = %v, want %v", i, step.after, got, step.want)
		}
	}
}

func TestTrapPortsInTimeWaitAreTakenAgain(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	s := startTrapping(t, target, TrapConfig{TCP: onePort(11)})
	c := dial(t, scanner, "tcp", target.IPv4, 11)
	s.next(t)
	if _, err := io.ReadAll(c); err != nil { // the trap closed first
		t.Fatal(err)
	}
	c.Close()
	s.cancel()
	if err := s.wait(t); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	nettest.WaitFor(t, "the connection is in TIME_WAIT", func() bool {
		return strings.Contains(target.Run(t, "ss", "-tanH", "state", "time-wait"), ":11")
	})
	startTrapping(t, target, TrapConfig{TCP: onePort(11)})
}

func TestOpenTrapsNeedsAPort(t *testing.T) {
	t.Parallel()
	_, target := nettest.NewPair(t)
	target.Listen(t, "tcp", 11)
	for name, tt := range map[string]struct {
		cfg  TrapConfig
		want string
	}{
		"no ports":   {TrapConfig{}, "no trap ports"},
		"all in use": {TrapConfig{TCP: onePort(11)}, "services have all the trap ports"},
		"banner":     {TrapConfig{TCP: trapPorts, Banner: make([]byte, MaxBanner+1)}, "4096 are the most"},
	} {
		t.Run(name, func(t *testing.T) {
			target.Do(t, func() {
				if traps, err := OpenTraps(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("OpenTraps = %v, %v; want an error with %q", traps, err, tt.want)
				}
			})
		})
	}
}

// One forged datagram between two daemons that both answer must not have them
// answer each other for ever, on whatever ports.
func TestTwoTrapsDoNotAnswerEachOther(t *testing.T) {
	t.Parallel()
	for name, ports := range map[string]struct{ left, right uint16 }{
		"same port":   {11, 11},
		"other ports": {11, 12},
	} {
		t.Run(name, func(t *testing.T) {
			left, right := nettest.NewPair(t)
			a := startTrapping(t, left, TrapConfig{UDP: onePort(ports.left), Banner: []byte(testBanner)})
			b := startTrapping(t, right, TrapConfig{UDP: onePort(ports.right), Banner: []byte(testBanner)})
			ip := ip4(layers.IPProtocolUDP)
			ip.SrcIP, ip.DstIP = left.IPv4.AsSlice(), right.IPv4.AsSlice()
			udp := &layers.UDP{SrcPort: layers.UDPPort(ports.left), DstPort: layers.UDPPort(ports.right)}
			if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
				t.Fatal(err)
			}
			newInjector(t, left, right).send(t, serialize(t, ip, udp))
			b.next(t)
			nettest.WaitFor(t, "a banner is held back", func() bool {
				return a.Stats().BannersHeld+b.Stats().BannersHeld == 1
			})
			if n := a.Stats().Datagrams + b.Stats().Datagrams; n > 3 {
				t.Errorf("%d datagrams, want 3 at most", n)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	const fits = 3*46 - 28 // the longest for the shortest datagram
	now := time.Now()
	probe := func(source string, after time.Duration) detector.Probe {
		return detector.Probe{Source: netip.MustParseAddrPort(source), At: now.Add(after)}
	}
	const first = "192.0.2.1:40000"
	for name, tt := range map[string]struct {
		p         detector.Probe
		n, banner int
		want      bool
	}{
		"another host":                 {probe("192.0.2.9:40000", 0), 0, 10, true},
		"the same host at once":        {probe("192.0.2.1:40001", 999*time.Millisecond), 0, 10, false},
		"the same host after a second": {probe(first, time.Second), 0, 10, true},
		"the same network":             {probe("[2001:db8::2]:40000", 0), 0, 10, false},
		"another network":              {probe("[2001:db8:0:1::2]:40000", 0), 0, 10, true},
		"longest for nothing":          {probe("192.0.2.9:40000", 0), 0, fits, true},
		"too long for nothing":         {probe("192.0.2.9:40000", 0), 0, fits + 1, false},
		"longer for much":              {probe("192.0.2.9:40000", 0), 1000, 3*1028 - 28, true},
	} {
		t.Run(name, func(t *testing.T) {
			var a answers
			for _, source := range []string{first, "[2001:db8::1]:40000"} {
				if p := probe(source, 0); !a.allow(&p, 0, 10) {
					t.Fatalf("the first of %s gets no answer", source)
				}
			}
			if got := a.allow(&tt.p, tt.n, tt.banner); got != tt.want {
				t.Errorf("allow(%v, %d bytes, banner of %d) = %v, want %v", tt.p.Source, tt.n, tt.banner, got, tt.want)
			}
		})
	}
}

func TestAnswersAreFewInAll(t *testing.T) {
	var a answers
	now := time.Now()
	var allowed [3]int
	for second := range allowed {
		for i := range 1000 {
			source := netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
			p := detector.Probe{Source: netip.AddrPortFrom(source, 40000), At: now.Add(time.Duration(second) * time.Second)}
			if a.allow(&p, 0, 10) {
				allowed[second]++
			}
		}
	}
	if want := [...]int{answersPerSecond, answersPerSecond, answersPerSecond}; allowed != want {
		t.Errorf("answers in each second: %v, want %v", allowed, want)
	}
}

// These two are not parallel, because they look at the whole process.

func TestTrapsLeaveNoDescriptors(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := descriptors()
	for _, banner := range []string{"", testBanner} {
		s := startTrapping(t, target, TrapConfig{TCP: trapPorts, UDP: trapPorts, Banner: []byte(banner)})
		open := descriptors()
		for range 100 {
			c := dial(t, scanner, "tcp", target.IPv4, 11)
			if got, err := io.ReadAll(c); err != nil || string(got) != banner {
				t.Fatalf("received %q (%v), want %q", got, err, banner)
			}
			c.Close()
		}
		nettest.WaitFor(t, "all connections are closed", func() bool { return descriptors() == open })
		s.cancel()
		if err := s.wait(t); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := descriptors(); got != before {
		t.Errorf("%d descriptors, want %d as before", got, before)
	}
}

func TestDescriptorLimit(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	})
	low := syscall.Rlimit{Cur: limit.Max - 1, Max: limit.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	if err := raiseDescriptorLimit(int(limit.Max)); err != nil {
		t.Errorf("raising the soft limit to the hard one: %v", err)
	}
	var raised syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &raised); err != nil || raised.Cur != limit.Max {
		t.Errorf("soft limit %d (%v), want %d", raised.Cur, err, limit.Max)
	}
	need := int(limit.Max) + 1
	err := raiseDescriptorLimit(need)
	for _, want := range []string{fmt.Sprint(limit.Max), fmt.Sprintf("LimitNOFILE=%d", need)} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("above the hard limit: %v, want an error with %q", err, want)
		}
	}
}

func TestWarnsOfEphemeralPorts(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		ports detector.PortRange
		want  []string
	}{
		"a few": {detector.PortRange{First: 40000, Last: 40001}, nil},
		"most":  {detector.PortRange{First: 1024, Last: 65535}, []string{"TCP"}},
	} {
		t.Run(name, func(t *testing.T) {
			log, hook := logrustest.NewNullLogger()
			traps := &Traps{log: logrus.NewEntry(log), tcp: detector.NewPortSet(tt.ports)}
			traps.warnOfEphemeralPorts()
			var got []string
			for _, e := range hook.AllEntries() {
				got = append(got, fmt.Sprint(e.Data["proto"]))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("warnings about %q, want %q", got, tt.want)
			}
		})
	}
}

func BenchmarkTrap(b *testing.B) {
	scanner, target := nettest.NewPair(b)
	startTrap := func(cfg TrapConfig) *trapping { return startTrapping(b, target, cfg) }
	s := startTrap(TrapConfig{UDP: onePort(11)})
	c := dial(b, scanner, "udp", target.IPv4, 11)
	if err := c.SetDeadline(time.Time{}); err != nil {
		b.Fatal(err)
	}
	payload := bytes.Repeat([]byte{1}, 10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(payload); err != nil {
			b.Fatal(err)
		}
		s.next(b)
	}
}
