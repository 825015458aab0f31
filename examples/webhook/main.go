// Webhook is an output module for Portsnare: it posts each scan to a URL, in the
// form that Slack, Mattermost and others take: {"text": "…"}.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

func main() { outputapi.Serve(&webhook{}) }

// A webhook posts scans to url.
type webhook struct {
	url string
}

var _ outputapi.Deliverer = (*webhook)(nil)

// Info says what the module is. It needs no capabilities: it only makes
// connections.
func (w *webhook) Info() outputapi.Info {
	return outputapi.Info{Name: "webhook", Version: "1.0.0", Summary: "posts each scan to a URL"}
}

// Configure takes the URL from the settings or, as it is a secret with many
// services, from a file that they name. It does not try to reach the server,
// which may be away for a while when the host starts.
func (w *webhook) Configure(_ context.Context, c outputapi.Configuration) error {
	var settings struct {
		URL     string `json:"url"`
		URLFile string `json:"url_file"`
	}
	if err := c.Decode(&settings); err != nil {
		return err
	}
	key, address := "url", settings.URL
	if settings.URLFile != "" {
		text, err := os.ReadFile(settings.URLFile)
		if err != nil {
			return outputapi.Faults{{Key: "url_file", Text: err.Error()}}
		}
		key, address = "url_file", strings.TrimSpace(string(text))
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		// The address stays out of the text, as it may be the secret.
		return outputapi.Faults{{Key: key, Text: "give an address that begins with http:// or https://"}}
	}
	w.url = address
	return nil
}

// Deliver posts one message for each scan. It stops at the first that fails and
// says how far it came, so that nothing is posted twice for that; only a server
// that takes a message and does not answer in time gets it again.
func (w *webhook) Deliver(ctx context.Context, events []detector.Event) error {
	var done outputapi.Partial
	for _, ev := range events {
		if ev.IsProbe() && ev.Triggered == detector.True {
			status, err := w.post(ctx, message(&ev))
			if err != nil {
				done.Err = err
				return &done
			}
			if status == http.StatusBadRequest { // it will never be a good one
				done.Rejected = append(done.Rejected, outputapi.Rejection{Sequence: ev.Sequence, Reason: "the server calls it a bad request"})
			}
		}
		done.Through = ev.Sequence
	}
	if done.Rejected != nil {
		return &done
	}
	return nil
}

// post returns the status if the server has dealt with the message.
func (w *webhook) post(ctx context.Context, text string) (int, error) {
	body, err := json.Marshal(map[string]string{"text": text})
	if err != nil {
		return 0, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, fmt.Errorf("posting a scan: %w", unwrapURL(err))
	}
	defer answer.Body.Close()
	// Read a little, so that the connection can be used again.
	_, _ = io.CopyN(io.Discard, answer.Body, 64<<10)
	if answer.StatusCode/100 != 2 && answer.StatusCode != http.StatusBadRequest {
		return 0, fmt.Errorf("posting a scan: the server answered %s", answer.Status)
	}
	return answer.StatusCode, nil
}

// unwrapURL keeps the address, which may be a secret, out of the log.
func unwrapURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// special are the characters with a meaning in Slack's messages. The name of a
// source is a stranger's text: unescaped, it could notify a whole channel.
var special = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// message returns what to say of a scan.
func message(ev *detector.Event) string {
	source := ev.Probe.Source.Addr().String()
	if ev.Host != "" {
		source += " (" + special.Replace(ev.Host) + ")"
	}
	kept := map[detector.Tri]string{detector.True: "it is kept out", detector.False: "it could not be kept out"}
	return fmt.Sprintf("%s scanned %s port %d/%v (%v): %s",
		source, ev.Probe.Target.Addr(), ev.Probe.Target.Port(), ev.Probe.Proto, ev.Probe.Technique,
		cmp.Or(kept[ev.Blocked], "it is not kept out"))
}
