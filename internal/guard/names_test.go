package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
)

// A zone answers for names, as DNS does; a name that is not there fails.
type zone struct {
	mu      sync.Mutex
	answers map[string][]netip.Addr
}

func (z *zone) lookup(_ context.Context, _, host string) ([]netip.Addr, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	addrs, ok := z.answers[host]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return addrs, nil
}

// set gives a name other addresses.
func (z *zone) set(name string, addrs ...netip.Addr) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.answers[name] = addrs
}

// remove removes a name.
func (z *zone) remove(name string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.answers, name)
}

func newZone() *zone { return &zone{answers: make(map[string][]netip.Addr)} }

// startNames follows names until the bubble's test ends.
func startNames(t *testing.T, lookup lookupFunc, names ...string) (*Guard, *logtest.Hook) {
	logger, logged := logtest.NewNullLogger()
	g := newGuard(Config{Names: names}, logrus.NewEntry(logger))
	g.names.lookup = lookup
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		g.followNames(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	synctest.Wait()
	return g, logged
}

func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := newZone()
		dns.set("admin.example.org", netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1"))
		g, logged := startNames(t, dns.lookup, "admin.example.org", "late.example.org")
		const admin, late = "on the allow list as admin.example.org", "on the allow list as late.example.org"
		expect := func(when, ban, want string) {
			t.Helper()
			synctest.Wait()
			if got := why(g, ban); got != want {
				t.Errorf("%s: %s is spared as %q, want %q", when, ban, got, want)
			}
		}
		expect("at once", "203.0.113.1/32", admin)
		expect("at once", "2001:db8::/64", admin)
		expect("at once", "203.0.113.2/32", "")
		if n := len(logged.AllEntries()); n != 1 {
			t.Errorf("%d warnings of the name that failed, want 1", n)
		}

		dns.set("late.example.org", netip.MustParseAddr("::ffff:203.0.113.2"))
		time.Sleep(namesRetry)
		expect("after a retry", "203.0.113.2/32", late)

		dns.set("admin.example.org", netip.MustParseAddr("203.0.113.3"))
		time.Sleep(namesInterval - time.Second)
		expect("before its time", "203.0.113.1/32", admin)
		time.Sleep(time.Second)
		expect("after a move", "203.0.113.3/32", admin)
		expect("after a move", "203.0.113.1/32", "")

		dns.remove("admin.example.org")
		dns.set("late.example.org")
		time.Sleep(time.Hour)
		expect("while DNS fails", "203.0.113.3/32", admin)
		expect("while DNS says nothing", "203.0.113.2/32", late)

		g.Configure(Config{Names: []string{"late.example.org"}})
		expect("no longer on the list", "203.0.113.3/32", "")
		expect("still on the list", "203.0.113.2/32", late)
	})
}

func TestNamesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var flood []netip.Addr
		for i := range 1000 {
			flood = append(flood, netip.AddrFrom4([4]byte{203, 0, 113 - byte(i>>8), byte(i)}))
		}
		dns := newZone()
		dns.set("cdn.example.org", flood...)
		g, logged := startNames(t, dns.lookup, "cdn.example.org")
		if got := len(*g.parts[fromNames].Load()); got != maxAddressesAName {
			t.Errorf("%d addresses, want %d", got, maxAddressesAName)
		}
		if e := logged.LastEntry(); e == nil || !strings.Contains(fmt.Sprint(e.Data[logrus.ErrorKey]), "1000 addresses") {
			t.Errorf("logged %v", e)
		}
	})
}

// TestSlowNamesDelayNoOthersForLong has more names that never answer than are
// asked at once.
func TestSlowNamesDelayNoOthersForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := []string{"admin.example.org"}
		for i := range 2 * lookupsAtOnce {
			names = append(names, fmt.Sprintf("silent-%d.example.org", i))
		}
		g, _ := startNames(t, func(ctx context.Context, _, host string) ([]netip.Addr, error) {
			if host == "admin.example.org" {
				return []netip.Addr{netip.MustParseAddr("203.0.113.1")}, nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}, names...)
		time.Sleep(2 * lookupTimeout)
		synctest.Wait()
		if got := why(g, "203.0.113.1/32"); !strings.HasSuffix(got, "admin.example.org") {
			t.Errorf("spared as %q", got)
		}
	})
}

// TestNamesByTheSystem asks the system's resolver what it knows without DNS.
func TestNamesByTheSystem(t *testing.T) {
	book := newNameBook(net.DefaultResolver.LookupNetIP)
	entries, err := book.renew(t.Context(), []string{"192.0.2.77"})
	if err != nil || len(entries) != 1 || entries[0].Prefix.Addr().Unmap() != netip.MustParseAddr("192.0.2.77") {
		t.Errorf("192.0.2.77 is %v, %v", entries, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := book.renew(ctx, []string{"silent.example.org"}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}
