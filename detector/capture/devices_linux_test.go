package capture

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/portsnare/portsnare/internal/nettest"
)

func TestDevices(t *testing.T) {
	_, target := nettest.NewPair(t)
	for _, command := range []string{
		"link add bare type veth peer name down",
		"link set bare addrgenmode none",
		"link set bare up",
		"link add br0 type bridge",
		"link add port type veth peer name other",
		"link set port master br0 up",
	} {
		target.Run(t, "ip", strings.Fields(command)...)
	}
	lo := Device{Name: "lo", Addrs: addrs("127.0.0.1", "::1")}
	eth0 := Device{Name: "eth0", Addrs: addrs("192.0.2.2", "2001:db8::2", "fe80::2")}
	bare := Device{Name: "bare"}
	tests := map[string]struct {
		cfg      SniffConfig
		devices  []Device
		unusable []string
	}{
		"all":             {SniffConfig{}, []Device{lo, eth0, bare}, nil},
		"no loopback":     {SniffConfig{SkipLoopbacks: true}, []Device{eth0, bare}, nil},
		"named":           {SniffConfig{Names: []string{"eth0", "lo"}}, []Device{lo, eth0}, nil},
		"some not usable": {SniffConfig{Names: []string{"eth9", "bare", "down", "lo"}}, []Device{lo, bare}, []string{"eth9", "bare", "down"}},
		"left out":        {SniffConfig{Names: []string{"eth0", "lo"}, SkipLoopbacks: true}, []Device{eth0}, []string{"lo"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := startSniffingWith(t, target, tt.cfg)
			if diff := cmp.Diff(tt.devices, s.Devices(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("devices (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.unusable, s.Unusable()); diff != "" {
				t.Errorf("unusable (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNamedInterfaceAppears asks for one that is there and one that is not yet.
func TestNamedInterfaceAppears(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	logger, logged := logtest.NewNullLogger()
	s := startSniffingWith(t, target, SniffConfig{Names: []string{"eth0", "late0"}, Log: logrus.NewEntry(logger)})
	if e := logged.LastEntry(); e == nil || e.Level != logrus.WarnLevel || e.Data["interface"] != "late0" {
		t.Errorf("logged %+v, want a warning of late0", e)
	}
	target.Run(t, "ip", "link", "add", "late0", "type", "veth", "peer", "name", "late0", "netns", scanner.Name)
	target.Run(t, "ip", "address", "add", "203.0.113.2/24", "dev", "late0")
	target.Run(t, "ip", "link", "set", "late0", "up")
	scanner.Run(t, "ip", "link", "set", "late0", "up")
	nettest.WaitFor(t, "the interface is usable", func() bool { return len(s.Unusable()) == 0 })

	elsewhere := *scanner
	there := *target
	elsewhere.Interface, there.Interface = "late0", "late0"
	packet, want := lastPacket(t)
	want.Interface = "late0"
	newInjector(t, &elsewhere, &there).send(t, packet)
	if diff := diffProbes(want, s.next(t)); diff != "" {
		t.Errorf("probe (-want +got):\n%s", diff)
	}
}
