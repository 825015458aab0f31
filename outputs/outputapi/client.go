package outputapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// maxEvents is the most events of one request, and the most elements of any
// other list in a message.
const maxEvents = 1000

// A Client is Portsnare's side of the protocol, and what a test of a module
// calls. It splits what is too long for a message and checks every answer; what
// breaks the protocol is an error. Deadlines are the caller's: nothing here ends
// before its context does if the module does not answer.
//
// It is safe for concurrent use.
type Client struct {
	calls outputv1.OutputClient
}

var (
	_ BanKeeper = (*Client)(nil)
	_ Flusher   = (*Client)(nil)
	_ BanSource = (*Client)(nil)
)

// NewClient returns a Client that calls a module by conn, which stays the
// caller's to close.
func NewClient(conn grpc.ClientConnInterface) *Client {
	return &Client{calls: outputv1.NewOutputClient(conn)}
}

// Describe asks what the module is.
func (c *Client) Describe(ctx context.Context) (Description, error) {
	answer, err := c.calls.Describe(ctx, &outputv1.DescribeRequest{})
	if err != nil {
		return Description{}, tame(err)
	}
	return toDescription(answer)
}

// Configure hands over the settings; none are an empty object. What the module
// has against them is an error of type [Faults].
func (c *Client) Configure(ctx context.Context, to Configuration) error {
	if len(to.Settings) == 0 {
		to.Settings = json.RawMessage("{}")
	}
	answer, err := c.calls.Configure(ctx, &outputv1.ConfigureRequest{
		Settings:       string(to.Settings),
		BootId:         to.BootID,
		StateDirectory: to.StateDir,
		HostVersion:    to.HostVersion,
		Check:          to.Check,
	})
	if err != nil {
		return tame(err)
	}
	var faults Faults
	for _, f := range answer.GetFaults()[:min(len(answer.GetFaults()), maxFaults)] {
		faults = append(faults, Fault{
			Key:  outputv1.Text(f.GetKey(), maxKey),
			Text: outputv1.Text(f.GetText(), maxFaultText),
		})
	}
	if faults != nil {
		return faults
	}
	return nil
}

// Deliver hands over events of one run of the daemon, which bootID names, in
// rising order. The error is a [*Partial] as soon as the module has answered for
// any of them.
func (c *Client) Deliver(ctx context.Context, bootID string, events []detector.Event) error {
	var sum Partial
	err := inParts(fromEvents(events), func(part []*outputv1.Event) error {
		return c.deliver(ctx, bootID, part, &sum)
	})
	switch {
	case err == nil && sum.Rejected == nil:
		return nil
	case sum.Through == 0 && sum.Rejected == nil:
		return err
	}
	sum.Err = err
	return &sum
}

func fromEvents(events []detector.Event) func(func(*outputv1.Event) bool) {
	return func(yield func(*outputv1.Event) bool) {
		for i := range events {
			if !yield(outputv1.FromEvent(&events[i])) {
				return
			}
		}
	}
}

// deliver sends one request and adds its answer to sum. It returns an error if
// not all events were accepted.
func (c *Client) deliver(ctx context.Context, bootID string, events []*outputv1.Event, sum *Partial) error {
	last := events[len(events)-1].GetSequence()
	answer, err := c.calls.Deliver(ctx, &outputv1.DeliverRequest{
		BootId: bootID, Events: events, LastSequence: last,
	})
	if err != nil {
		return tame(err)
	}
	first, through := events[0].GetSequence(), min(answer.GetAcceptedThrough(), last)
	sum.Through = max(sum.Through, through)
	if len(answer.GetRejected()) > len(events) {
		return fmt.Errorf("the module rejected %d of %d events", len(answer.GetRejected()), len(events))
	}
	for _, r := range answer.GetRejected() {
		if r.GetSequence() < first || r.GetSequence() > through {
			return fmt.Errorf("the module rejected event %d, which it did not accept", r.GetSequence())
		}
		sum.Rejected = append(sum.Rejected, Rejection{
			Sequence: r.GetSequence(),
			Reason:   outputv1.Text(r.GetReason(), maxReason),
		})
	}
	if through < last {
		if err := outputv1.ToError(answer.GetError()); err != nil {
			return err
		}
		return fmt.Errorf("the module accepted events through %d of %d", through, last)
	}
	return nil
}

// SetBans states all bans that are to be in force.
func (c *Client) SetBans(ctx context.Context, bans []detector.Ban) ([]Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // else a stream that is not read to its end stays open
	stream, err := c.calls.SetBans(ctx)
	if err != nil {
		return nil, tame(err)
	}
	err = inParts(fromBans(bans), func(part []*outputv1.Ban) error {
		return stream.Send(&outputv1.SetBansRequest{Bans: part})
	})
	return finish(stream, err, len(bans))
}

// ChangeBans puts bans in force and lifts others.
func (c *Client) ChangeBans(ctx context.Context, add, remove []detector.Ban) ([]Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.calls.ChangeBans(ctx)
	if err != nil {
		return nil, tame(err)
	}
	err = inParts(fromBans(add), func(part []*outputv1.Ban) error {
		return stream.Send(&outputv1.ChangeBansRequest{Add: part})
	})
	if err == nil {
		err = inParts(fromBans(remove), func(part []*outputv1.Ban) error {
			return stream.Send(&outputv1.ChangeBansRequest{Remove: part})
		})
	}
	return finish(stream, err, len(add))
}

// finish ends the request of a ban call, of which sending may have failed, and
// reads the answer for a number of bans.
func finish[M any](stream grpc.BidiStreamingClient[M, outputv1.BanResponse], sending error, bans int) ([]Result, error) {
	// EOF while sending says that the module has answered already: receiving
	// tells what.
	if sending != nil && !errors.Is(sending, io.EOF) {
		return nil, tame(sending)
	}
	if err := stream.CloseSend(); err != nil {
		return nil, tame(err)
	}
	var results []Result
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, tame(err)
		}
		if len(results)+len(m.GetResults()) > bans {
			return nil, fmt.Errorf("the module answered %d bans with more results", bans)
		}
		for _, r := range m.GetResults() {
			acts, err := outputv1.ToResult(r)
			results = append(results, Result{Err: err, Acts: acts})
		}
	}
	switch {
	case sending != nil:
		return nil, errors.New("the module answered before it had all bans")
	case results != nil && len(results) != bans:
		return nil, fmt.Errorf("the module answered %d bans with %d results", bans, len(results))
	}
	return results, nil
}

// Flush has the module put away what it holds in memory.
func (c *Client) Flush(ctx context.Context) error {
	_, err := c.calls.Flush(ctx, &outputv1.FlushRequest{})
	return tame(err)
}

// WatchBans calls tell for each change, from one goroutine, until ctx or the
// module ends the call. It returns an error in any case.
func (c *Client) WatchBans(ctx context.Context, tell func(BanChange) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.calls.WatchBans(ctx, &outputv1.WatchBansRequest{})
	if err != nil {
		return tame(err)
	}
	var change BanChange
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the module has stopped watching bans")
		}
		if err != nil {
			return tame(err)
		}
		if err := errors.Join(appendBans(&change.Add, m.GetAdd()), appendBans(&change.Remove, m.GetRemove())); err != nil {
			return err
		}
		change.Whole = change.Whole || m.GetWhole()
		if m.GetMore() {
			continue
		}
		if err := tell(change); err != nil {
			return err
		}
		change = BanChange{}
	}
}
