package guard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	namesInterval = 5 * time.Minute  // between two lookups of a name
	namesRetry    = 15 * time.Second // the same after a failure
	lookupTimeout = 10 * time.Second // of one lookup

	lookupsAtOnce     = 8
	maxAddressesAName = 64 // a name is a person's or a few machines'
)

// A lookupFunc asks DNS for the addresses of a host, as
// [net.Resolver.LookupNetIP] does.
type lookupFunc func(ctx context.Context, network, host string) ([]netip.Addr, error)

// A nameBook remembers the last good answer for each name.
type nameBook struct {
	lookup  lookupFunc
	answers map[string][]netip.Addr
}

func newNameBook(lookup lookupFunc) nameBook {
	return nameBook{lookup: lookup, answers: make(map[string][]netip.Addr)}
}

// followNames looks up the administrator's names, the first time at once.
func (g *Guard) followNames(ctx context.Context) {
	wait := namesInterval // not for the first time: Configure has told of them
	for {
		again := time.NewTimer(wait)
		select {
		case <-again.C:
		case <-g.renamed:
		case <-ctx.Done():
		}
		again.Stop()
		entries, err := g.names.renew(ctx, g.config.Load().Names)
		if ctx.Err() != nil {
			return
		}
		g.put(fromNames, entries)
		g.coped(fromNames, err)
		wait = namesInterval
		if err != nil {
			wait = namesRetry
		}
	}
}

// renew looks all names up, forgets those no longer asked for, and returns what
// is known then. An answer of more addresses than maxAddressesAName is cut and
// counts as a failure, so that it is told.
func (b *nameBook) renew(ctx context.Context, names []string) ([]Entry, error) {
	answers, faults := make([][]netip.Addr, len(names)), make([]error, len(names))
	var lookups errgroup.Group
	lookups.SetLimit(lookupsAtOnce)
	for i, name := range names {
		lookups.Go(func() error {
			answers[i], faults[i] = b.ask(ctx, name)
			return nil
		})
	}
	_ = lookups.Wait() // the errors are in faults
	known := make(map[string][]netip.Addr, len(names))
	var entries []Entry
	for i, name := range names {
		if len(answers[i]) == 0 {
			answers[i] = b.answers[name]
		}
		known[name] = answers[i]
		for _, addr := range answers[i] {
			entries = append(entries, Entry{hostPrefix(addr), whyAllowed + " as " + name})
		}
	}
	b.answers = known
	return entries, errors.Join(faults...)
}

func (b *nameBook) ask(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := b.lookup(ctx, "ip", name)
	switch {
	case err != nil:
		return nil, err // names the host
	case len(addrs) == 0:
		return nil, fmt.Errorf("%s: no address", name)
	case len(addrs) > maxAddressesAName:
		return addrs[:maxAddressesAName], fmt.Errorf("%s: %d addresses, of which the first %d are spared",
			name, len(addrs), maxAddressesAName)
	}
	return addrs, nil
}
