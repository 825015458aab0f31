package capture

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/portsnare/portsnare/internal/nettest"
)

// startWatching watches host until the test ends.
func startWatching(t testing.TB, host *nettest.Host) *hostWatcher {
	t.Helper()
	var w *hostWatcher
	host.Do(t, func() {
		var err error
		if w, err = watchHost(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// named returns the link with a name.
func (v *hostView) named(name string) link {
	for _, l := range v.links {
		if l.name == name {
			return l
		}
	}
	return link{}
}

func addrs(texts ...string) []netip.Addr {
	var addrs []netip.Addr
	for _, text := range texts {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs
}

func TestHostView(t *testing.T) {
	_, target := nettest.NewPair(t)
	for _, command := range []string{
		"link add br0 type bridge",
		"link add one type veth peer name two",
		"link set one master br0",
		"address add 203.0.113.1 peer 203.0.113.2 dev two",
	} {
		target.Run(t, "ip", strings.Fields(command)...)
	}
	view, err := startWatching(t, target).view()
	if err != nil {
		t.Fatal(err)
	}

	links := []link{
		{name: "lo", up: true, loopback: true, addrs: addrs("127.0.0.1", "::1")},
		{name: "eth0", up: true, addrs: addrs("192.0.2.2", "2001:db8::2", "fe80::2")},
		{name: "br0"},
		{name: "one", member: true},
		{name: "two", addrs: addrs("203.0.113.1")},
	}
	for _, want := range links {
		if diff := cmp.Diff(want, view.named(want.name), cmp.AllowUnexported(link{}), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("link (-want +got):\n%s", diff)
		}
	}
	local := map[string]struct {
		on   string
		want bool
	}{
		"192.0.2.2":    {"eth0", true},
		"2001:db8::2":  {"eth0", true},
		"fe80::2":      {"eth0", true},
		"203.0.113.1":  {"eth0", true}, // on two
		"203.0.113.2":  {"two", false}, // at the other end
		"192.0.2.255":  {"eth0", false},
		"198.51.100.1": {"eth0", false},
		"127.0.0.1":    {"lo", true},
		"127.1.2.3":    {"lo", true},
		"::1":          {"lo", true},
	}
	for address, tt := range local {
		if got := view.isLocal(netip.MustParseAddr(address), view.named(tt.on)); got != tt.want {
			t.Errorf("%s is local on %s: %v, want %v", address, tt.on, got, tt.want)
		}
	}
	for _, address := range []string{"127.0.0.1", "::1"} {
		if view.isLocal(netip.MustParseAddr(address), view.named("eth0")) {
			t.Errorf("%s is local on eth0, where Linux drops it", address)
		}
	}
}

func TestHostViewString(t *testing.T) {
	view := newHostView()
	if got, want := view.String(), "no interfaces"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	view.links[2] = link{name: "eth0"}
	view.links[1] = link{name: "lo", up: true}
	if got, want := view.String(), "lo (up), eth0 (down)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHostWatcherNotices(t *testing.T) {
	_, target := nettest.NewPair(t)
	w := startWatching(t, target)
	for _, command := range []string{
		"link set eth0 down",
		"link set eth0 up",
		"address add 192.0.2.77/24 dev eth0",
		"address delete 192.0.2.77/24 dev eth0",
		"address add 2001:db8::77/64 dev eth0", // tentative at first
	} {
		target.Run(t, "ip", strings.Fields(command)...)
		if err := w.wait(t.Context()); err != nil {
			t.Errorf("after %q: %v", command, err)
		}
	}
	view, err := w.view()
	if err != nil {
		t.Fatal(err)
	}
	if !view.isLocal(netip.MustParseAddr("2001:db8::77"), link{}) {
		t.Error("the tentative address is not local")
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	nettest.WaitFor(t, "all notices are read", func() bool { return w.wait(ctx) != nil })
	if err := w.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait after the end: %v, want %v", err, context.Canceled)
	}
}

// TestHostWatcherRecovers has a dump fail, and answers left in the socket.
func TestHostWatcherRecovers(t *testing.T) {
	_, target := nettest.NewPair(t)
	w := startWatching(t, target)
	target.Do(t, func() { // opens another socket
		if _, err := w.tables.dump(0xffff, nil); err == nil {
			t.Error("a dump of nothing succeeded")
		}
		view, err := w.view()
		if err != nil {
			t.Fatal(err)
		}
		if got := view.named("eth0"); !got.up {
			t.Errorf("then eth0 is %+v, want it up", got)
		}
	})
}

func TestLogChanges(t *testing.T) {
	before, after := newHostView(), newHostView()
	before.links[1], after.links[1] = link{name: "lo", up: true}, link{name: "lo", up: true}
	before.links[2], after.links[2] = link{name: "eth0", up: true}, link{name: "eth0"}
	after.links[3] = link{name: "eth1", up: true}
	tests := map[string]struct {
		rule interfaceRule
		want []string
	}{
		"named": {
			interfaceRule{names: []string{"lo", "eth0", "eth1"}},
			[]string{"warning: eth0: interface is gone or down", "info: eth1: capture on interface begins"},
		},
		"all": {
			interfaceRule{},
			[]string{"debug: eth0: interface is gone or down", "debug: eth1: capture on interface begins"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			logger, logged := logtest.NewNullLogger()
			logger.SetLevel(logrus.DebugLevel)
			s := &PacketSocket{log: logrus.NewEntry(logger)}
			s.logChanges(tt.rule, before, after)
			var got []string
			for _, e := range logged.AllEntries() {
				got = append(got, e.Level.String()+": "+e.Data["interface"].(string)+": "+e.Message)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("logged (-want +got):\n%s", diff)
			}
		})
	}
}

// TestResyncsAreFew makes many changes at a time.
func TestResyncsAreFew(t *testing.T) {
	_, target := nettest.NewPair(t)
	s := startSniffing(t, target)
	began := time.Now()
	before, readings := s.view(), 0
	target.Run(t, "sh", "-c", "for i in $(seq 10 209); do echo address add 192.0.2.$i/24 dev eth0; done | ip -batch -")
	last := netip.MustParseAddr("192.0.2.209")
	nettest.WaitFor(t, "the last address is known", func() bool {
		if v := s.view(); v != before {
			before = v
			readings++
		}
		return s.view().isLocal(last, link{})
	})
	if most := int(time.Since(began)/resyncPause) + 1; readings > most {
		t.Errorf("%d readings in %v, want at most %d", readings, time.Since(began), most)
	}
}
