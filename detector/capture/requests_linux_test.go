package capture

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

// trapRequests is a trap port that a program of the host may get.
const trapRequests = 32771

// sendUDP sends a datagram from a socket of host that is closed at once.
func sendUDP(t testing.TB, host *nettest.Host, from, to string) {
	t.Helper()
	source, target := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	host.Do(t, func() {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(source))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if target.Addr().Is4() { // IPv6 has no broadcasts
			allowBroadcasts(t, conn)
		}
		if _, err := conn.WriteToUDPAddrPort([]byte("hello"), target); err != nil {
			t.Fatalf("from %s to %s: %v", from, to, err)
		}
	})
}

func allowBroadcasts(t testing.TB, conn *net.UDPConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestLateAnswers sends requests from sockets that are gone when the answer
// comes, which is followed by a probe that must be seen.
func TestLateAnswers(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	scanner.Run(t, "ip", "address", "add", "192.0.2.9/24", "dev", "eth0")
	s := startSniffingWith(t, target, SniffConfig{UDP: onePort(trapRequests)})
	nettest.WaitFor(t, "IPv6 multicast is routed", func() bool {
		return target.Run(t, "ip", "-6", "route", "show", "table", "all", "type", "multicast") != ""
	})
	tests := map[string]struct {
		from, to     string // the request
		source, dest string // its answer
		probe        string // another source of a datagram to dest
	}{
		"another port":         {"192.0.2.2:32771", "192.0.2.1:53", "192.0.2.1:53", "192.0.2.2:32771", "192.0.2.1:54"},
		"another address":      {"192.0.2.2:32771", "192.0.2.1:55", "192.0.2.1:55", "192.0.2.2:32771", "192.0.2.9:55"},
		"IPv6":                 {"[2001:db8::2]:32771", "[2001:db8::1]:53", "[2001:db8::1]:53", "[2001:db8::2]:32771", "[2001:db8::1]:54"},
		"link-local":           {"[fe80::2%eth0]:32771", "[fe80::1%eth0]:53", "[fe80::1%eth0]:53", "[fe80::2%eth0]:32771", "[fe80::1%eth0]:54"},
		"broadcast":            {"192.0.2.2:32771", "192.0.2.255:137", "192.0.2.9:137", "192.0.2.2:32771", "192.0.2.9:138"},
		"limited broadcast":    {"192.0.2.2:32771", "255.255.255.255:67", "192.0.2.9:67", "192.0.2.2:32771", "192.0.2.9:68"},
		"IPv6 multicast group": {"[fe80::2%eth0]:32771", "[ff02::fb%eth0]:5353", "[2001:db8::1]:5353", "[2001:db8::2]:32771", "[2001:db8::1]:5354"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			before := s.Stats()
			sendUDP(t, target, tt.from, tt.to)
			nettest.WaitFor(t, "the request has left", func() bool { return s.Stats().Requests > before.Requests })
			sendUDP(t, scanner, tt.source, tt.dest)
			sendUDP(t, scanner, tt.probe, tt.dest)
			if p := s.next(t); p.Source.String() != tt.probe {
				t.Errorf("a probe from %v, want only that from %s", p.Source, tt.probe)
			}
			nettest.WaitFor(t, "all is counted", func() bool { return s.Stats().Probes > before.Probes })
			stats := s.Stats()
			if requests, answers := stats.Requests-before.Requests, stats.Answers-before.Answers; requests != 1 || answers != 1 {
				t.Errorf("%d requests and %d answers, want one each", requests, answers)
			}
		})
	}
}

// TestForgedRequests has a router send on what claims to be its own request.
func TestForgedRequests(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	s := startSniffingWith(t, target, SniffConfig{UDP: onePort(trapRequests)})
	target.Run(t, "sysctl", "--write", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	nettest.WaitFor(t, "forwarding is noticed", func() bool { return s.view().forwards6 })
	wire := newInjector(t, scanner, target)

	v4 := ip4(layers.IPProtocolUDP)
	v4.SrcIP, v4.DstIP = target4.AsSlice(), scanner4.AsSlice()
	v6 := ip6(layers.IPProtocolUDP)
	v6.SrcIP, v6.DstIP = target6.AsSlice(), scanner6.AsSlice()
	for _, ip := range []interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	}{v4, v6} {
		udp := datagram(ip)
		udp.SrcPort, udp.DstPort = trapRequests, 53
		wire.send(t, serialize(t, ip, udp))
	}
	nettest.WaitFor(t, "the IPv6 one has been sent on", func() bool { return s.Stats().Requests == 1 })
	for from, to := range map[string]string{
		"192.0.2.1:53": "192.0.2.2:32771", "[2001:db8::1]:53": "[2001:db8::2]:32771",
	} {
		sendUDP(t, scanner, from, to)
		if p := s.next(t); p.Source.String() != from {
			t.Errorf("a probe from %v, want that from %s", p.Source, from)
		}
	}
}

// TestLateAnswersOnLoopback has every packet shown twice.
func TestLateAnswersOnLoopback(t *testing.T) {
	_, target := nettest.NewPair(t)
	s := startSniffingWith(t, target, SniffConfig{UDP: onePort(trapRequests)})
	sendUDP(t, target, "127.0.0.1:32771", "127.0.0.1:53")
	sendUDP(t, target, "127.0.0.1:53", "127.0.0.1:32771")
	sendUDP(t, target, "127.0.0.1:54", "127.0.0.1:32771")
	if p := s.next(t); p.Source.String() != "127.0.0.1:54" {
		t.Errorf("a probe from %v, want only that from port 54", p.Source)
	}
}

// TestLateAnswersOnTun has a device without a link header.
func TestLateAnswersOnTun(t *testing.T) {
	_, target := nettest.NewPair(t)
	tun := openTun(t, target)
	target.Run(t, "ip", "address", "add", "203.0.113.2/24", "dev", "tun0")
	s := startSniffingWith(t, target, SniffConfig{Names: []string{"tun0"}, UDP: onePort(trapRequests)})
	receive := func(sourcePort layers.UDPPort) {
		ip := ip4(layers.IPProtocolUDP)
		ip.SrcIP, ip.DstIP = net.IPv4(203, 0, 113, 1), net.IPv4(203, 0, 113, 2)
		udp := datagram(ip)
		udp.SrcPort, udp.DstPort = sourcePort, trapRequests
		if _, err := tun.Write(serialize(t, ip, udp)); err != nil {
			t.Fatal(err)
		}
	}
	sendUDP(t, target, "203.0.113.2:32771", "203.0.113.1:53")
	receive(53)
	receive(54)
	if p := s.next(t); p.Source.Port() != 54 || p.Interface != "tun0" {
		t.Errorf("a probe from %v on %s, want only that from port 54 on tun0", p.Source, p.Interface)
	}
}

func TestRequestsAreSeenIfNeeded(t *testing.T) {
	_, target := nettest.NewPair(t)
	s := startSniffingWith(t, target, SniffConfig{UDP: onePort(firstUserPort - 1)})
	for _, port := range []uint16{firstUserPort - 1, firstUserPort, firstUserPort - 1} {
		if err := s.SetPorts(detector.PortSet{}, onePort(port)); err != nil {
			t.Fatal(err)
		}
		before := s.Stats().Packets
		from := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String()
		sendUDP(t, target, from, "127.0.0.1:53") // seen before sendUDP returns
		want := uint64(0)
		if port >= firstUserPort {
			want = 1
		}
		if got := s.Stats().Packets - before; got != want {
			t.Errorf("%d packets of a request from port %d, want %d", got, port, want)
		}
	}
}

// TestSniffBroadcasts sends to each address that every host shares.
func TestSniffBroadcasts(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	target.Run(t, "ip", "address", "add", "203.0.113.9/24", "broadcast", "203.0.113.100", "dev", "eth0")
	scanner.Run(t, "ip", "address", "add", "203.0.113.1/24", "broadcast", "203.0.113.100", "dev", "eth0")
	all := startSniffingWith(t, target, SniffConfig{Broadcasts: true})
	usual := startSniffing(t, target)
	for _, address := range []string{
		"192.0.2.255:7", "203.0.113.255:7", "203.0.113.100:7", "255.255.255.255:7", "224.0.0.1:7",
		"[ff02::1%eth0]:7", "[ff02::1:ff00:2%eth0]:7",
	} {
		from := "192.0.2.1:40000"
		if netip.MustParseAddrPort(address).Addr().Is6() {
			from = "[fe80::1%eth0]:40000"
		}
		sendUDP(t, scanner, from, address)
		want := netip.MustParseAddrPort(address)
		want = netip.AddrPortFrom(want.Addr().WithZone(""), want.Port())
		if p := all.next(t); p.Target != want || p.Technique != detector.TechniqueUDP {
			t.Errorf("%s: a probe of %v, want UDP", address, p.Target)
		}
	}
	sendUDP(t, scanner, "192.0.2.1:40000", "224.0.0.251:7") // a group that nobody has joined
	wire := newInjector(t, scanner, target)
	wire.header = append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, wire.header[6:]...)
	wire.send(t, tcp4(t, detector.SYN)) // Linux drops it
	sendUDP(t, scanner, "192.0.2.1:40000", "192.0.2.2:7")
	for name, s := range map[string]*sniffing{"all": all, "usual": usual} {
		if p := s.next(t); p.Target.Addr() != target4 {
			t.Errorf("%s: a probe of %v, want only that of this host's own address", name, p.Target)
		}
	}
}

// TestServicesTakeBroadcasts has those that do not hold the port.
func TestServicesTakeBroadcasts(t *testing.T) {
	broadcast := netip.MustParseAddrPort("192.0.2.255:7")
	group := netip.MustParseAddrPort("[ff02::1]:7")
	tests := map[string]struct {
		bind                 string
		ofBroadcast, ofGroup bool
	}{
		"on all addresses":         {"[::]:7", true, true},
		"on all IPv4 addresses":    {"0.0.0.0:7", true, false},
		"on one address":           {"192.0.2.2:7", false, false},
		"on the broadcast address": {"192.0.2.255:7", true, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, target := nettest.NewPair(t)
			bind := netip.MustParseAddrPort(tt.bind)
			network := "udp"
			if bind.Addr().Is4() {
				network = "udp4" // or 0.0.0.0 would be ::
			}
			var conn net.PacketConn
			var services *Services
			target.Do(t, func() {
				var err error
				if conn, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(bind)); err != nil {
					t.Fatal(err)
				}
				if services, err = NewServices(nil); err != nil {
					t.Fatal(err)
				}
			})
			defer conn.Close()
			defer services.Close()
			if got := services.InUse(detector.UDP, broadcast); got != tt.ofBroadcast {
				t.Errorf("it holds %v: %v, want %v", broadcast, got, tt.ofBroadcast)
			}
			if got := services.InUse(detector.UDP, group); got != tt.ofGroup {
				t.Errorf("it holds %v: %v, want %v", group, got, tt.ofGroup)
			}
		})
	}
}
